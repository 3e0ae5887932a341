"""`qlora train`, `resume`, `runs`, `chat` and `export` on a tiny model: in this process, and as a person runs them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import events
from qlora_engine.cli.commands import export
from qlora_engine.cli.commands.train import Outcome, last_words
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.events import RunFinished, RunStarted, RunStopped, StepFinished
from qlora_engine.runs.record import RunFolder
from tests.support.run_folders import add_checkpoint

WriteJob = Callable[..., Path]


@pytest.fixture
def write_job(tmp_path: Path, tiny_model: Path, good_rows: Path) -> WriteJob:
    """A job of seconds; the arguments change its `[training]` table."""

    def write(**training: object) -> Path:
        settings = {
            "max_steps": 4,
            "effective_batch": 2,
            "micro_batch": 2,
            "learning_rate": 0.01,
            "optimizer": "adamw_torch_fused",
            "eval_every_steps": 2,
            "end_rows": 2,
            "end_tokens": 24,
            **training,
        }
        lines = [
            f"[model]\nname = {json.dumps(str(tiny_model))}\ndevice = 'cpu'",
            f"[data]\npath = {json.dumps(str(good_rows))}\nheld_out_fraction = 0.25",
            "[lora]\nrank = 4",
            "[training]",
            *(f"{name} = {json.dumps(value)}" for name, value in settings.items()),
        ]
        job = tmp_path / "job.toml"
        job.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return job

    return write


def test_train_prints_one_document(qlora: Any, write_job: WriteJob) -> None:
    result = qlora("train", write_job(), "--json")
    assert result.code == 0, result.err
    document = result.document
    assert document["state"] == "finished"
    assert document["last_step"] == 4
    assert document["loss_after"] < document["loss_before"]
    assert (Path(document["adapter"]) / "adapter_model.safetensors").is_file()
    (listed,) = qlora("runs", "--json").document["runs"]
    assert listed["state"] == "finished"


def test_train_tells_a_person_how_it_went(qlora: Any, write_job: WriteJob) -> None:
    result = qlora("train", write_job())
    assert result.code == 0, result.err
    assert "Finished: run " in result.out
    assert "Held-out loss: " in result.out
    assert "Adapter: " in result.out
    assert (
        f"qlora export {RunFolder(Path(re.findall(r'Adapter: (.+)/adapter', result.out)[0])).run_id}"
        in result.out
    )
    assert "Loaded as NF4 with double quantization" in result.err
    assert "step 4/4" in result.err


def test_events_are_a_stream_of_json_lines(qlora: Any, write_job: WriteJob) -> None:
    result = qlora("train", write_job(), "--events")
    assert result.code == 0, result.err
    stream = [events.decode(line) for line in result.out.splitlines()]
    assert isinstance(stream[0], RunStarted)
    assert isinstance(stream[-1], RunFinished)
    assert [event.step for event in stream if isinstance(event, StepFinished)] == [1, 2, 3, 4]
    assert sum(isinstance(event, events.TERMINAL) for event in stream) == 1


def test_a_setting_on_the_command_line_wins(qlora: Any, write_job: WriteJob) -> None:
    job = write_job()
    for rank in (2, 8):
        result = qlora("train", job, "--set", f"lora.rank={rank}", "--set", f"output.name=r{rank}")
        assert result.code == 0, result.err
    document = qlora("compare", "r2", "r8", "--json").document
    assert document["settings"] == {"lora.rank": [2, 8]}
    assert [len(side["curve"]) for side in document["runs"]] == [4, 4]


@contextmanager
def program(*arguments: object, home: Path) -> Iterator[subprocess.Popen[str]]:
    """`qlora` as a person starts it: a program with an engine process of its own."""
    environment = {**os.environ, "QLORA_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment.pop("QLORA_ENGINE", None)
    child = subprocess.Popen(
        [sys.executable, "-m", "qlora_engine.cli.main", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def read_until(child: subprocess.Popen[str], kind: type[events.Event], count: int = 1) -> events.Event:
    assert child.stdout is not None
    for line in child.stdout:
        event = events.decode(line)
        count -= isinstance(event, kind)
        if count == 0:
            return event
    raise AssertionError(f"the stream ended without {kind.__name__}")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_saves_and_resume_finishes(qlora: Any, write_job: WriteJob, home: Path) -> None:
    job = write_job(max_steps=4000, early_stopping="none", eval_every_steps=4000)
    with program("train", job, "--events", "--set", "output.name=long", home=home) as child:
        read_until(child, StepFinished, 3)
        child.send_signal(signal.SIGINT)
        stopped = read_until(child, RunStopped)
        assert isinstance(stopped, RunStopped)
        assert stopped.is_resumable
        assert child.wait(60) == 0
    (listed,) = qlora("runs", "--json").document["runs"]
    assert (listed["state"], listed["is_resumable"]) == ("stopped", True)
    assert listed["last_step"] >= 3
    assert "checkpoint step-" in (home / "runs" / "long" / "log.txt").read_text(encoding="utf-8")
    with program("resume", "long", "--events", home=home) as child:
        started = read_until(child, RunStarted)
        assert isinstance(started, RunStarted)
        assert started.is_resumed
        first = read_until(child, StepFinished)
        assert isinstance(first, StepFinished)
        assert first.step == listed["last_step"] + 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9 is a POSIX word")
def test_a_killed_terminal_leaves_a_resumable_run(qlora: Any, write_job: WriteJob, home: Path) -> None:
    job = write_job(max_steps=4000, early_stopping="none", eval_every_steps=4000)
    with program("train", job, "--events", "--set", "output.name=orphan", home=home) as child:
        started = read_until(child, RunStarted)
        assert isinstance(started, RunStarted)
        read_until(child, StepFinished, 3)
        child.kill()
        child.wait(30)
    wait_for_end(started.pid)
    (listed,) = qlora("runs", "--json").document["runs"]
    assert (listed["state"], listed["is_resumable"]) == ("stopped", True)


def wait_for_end(pid: int) -> None:
    import psutil

    try:
        psutil.Process(pid).wait(60)
    except psutil.NoSuchProcess:
        return


def test_a_finished_run_answers_and_exports(qlora: Any, write_job: WriteJob, tmp_path: Path) -> None:
    qlora("train", write_job(), "--set", "output.name=done")
    answered = qlora(
        "chat", "done", "--prompt", "what colour is 1?", "--compare", "--max-tokens", 8, "--json"
    )
    assert answered.code == 0, answered.err
    assert [answer["side"] for answer in answered.document["answers"]] == ["base", "tuned"]
    assert all(answer["tokens"] <= 8 for answer in answered.document["answers"])
    together = (
        "chat",
        "done",
        "--prompt",
        "what colour is 1?",
        "--with",
        "again",
        "--max-tokens",
        8,
        "--json",
    )
    assert qlora(*together).code == 2  # there is no such run yet
    qlora("train", write_job(), "--set", "output.name=again", "--set", "training.max_steps=1")
    answers = qlora(*together).document["answers"]
    assert [answer["side"] for answer in answers] == ["tuned", "again"]
    assert answers[0]["text"] == answered.document["answers"][1]["text"]
    assert all(answer["tokens_per_second"] > 0 for answer in answers)
    qlora("train", write_job(), "--set", "output.name=single", "--set", "quantization.double_quant=false")
    refused = qlora("chat", "done", "--prompt", "x", "--with", "single")
    assert refused.code == 2
    assert "NF4 without double quantization, and the loaded base is NF4 with" in refused.error
    for name in ("adapter", "merged"):
        result = qlora("export", "done", "--as", name, "--out", tmp_path / name, "--json")
        assert result.code == 0, result.err
        assert all(check["passed"] is not False for check in result.document["checks"])
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_an_export_that_is_not_the_trained_model_fails(
    more: tuple[str, ...], qlora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunFolder.create(with_value(TrainingConfig(), "output.name", "one"))
    checks = [{"name": "loads", "passed": True}, {"name": "logits equal", "passed": False}]
    end = RunFinished({"path": "/out", "bytes": 3, "is_proven": False, "checks": checks})
    monkeypatch.setattr(export.driving, "run_job", lambda *_, **__: end)
    result = qlora("export", "one", "--as", "merged", "--out", tmp_path / "out", *more)
    assert result.code == 1
    assert "not the trained model: failed: logits equal; hint: do not use it" in result.error
    assert "proven" not in result.out.replace("is_proven", "")


def test_a_question_too_long_for_the_model_is_refused(qlora: Any, tiny_model: Path) -> None:
    for more in ((), ("--json",)):
        result = qlora("chat", tiny_model, "--prompt", "word " * 400, *more)
        assert (result.code, result.out) == (2, "")
        assert "the model sees at most 256; hint: start a new conversation" in result.error


def test_a_conversation_goes_on_from_line_to_line(
    qlora: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("hello\n\n" + "word " * 400 + "\nand now\n/quit\nnever asked\n")
    )
    result = qlora("chat", tiny_model, "--max-tokens", 4)
    assert result.code == 0, result.err
    assert result.err.count("the model sees at most 256") == 1
    assert "start a new conversation" in result.err


def test_quitting_at_once_says_what_is_lost(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.create(with_value(TrainingConfig(), "output.name", "one"))
    outcome = Outcome()
    outcome.run_dir = folder.path
    with pytest.raises(KeyboardInterrupt), last_words(outcome):
        raise KeyboardInterrupt
    assert "before the first checkpoint" in capsys.readouterr().err
    for step in (5, 12):
        add_checkpoint(folder, step)
    with pytest.raises(KeyboardInterrupt), last_words(outcome):
        raise KeyboardInterrupt
    assert "after step 12 is lost. Go on with: qlora resume one" in capsys.readouterr().err


def test_a_conversation_needs_a_prompt_for_json(qlora: Any, tiny_model: Path) -> None:
    result = qlora("chat", tiny_model, "--json")
    assert result.code == 2
    assert "--json needs --prompt" in result.error
