"""Prompt sets asked of many runs: what is kept is not asked again, and stopping loses nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.control import Control
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.evaluate import answers, replay
from qlora_engine.evaluate.replay import replay_job
from qlora_engine.events import AnswerFinished, Event, ModelLoaded, RunFinished
from qlora_engine.jobs import ReplayJob
from qlora_engine.runs.record import RunFolder
from tests.engine.evaluate.test_chat import Talk
from tests.support import tiny_runs
from tests.support.run_folders import seal_adapter

PROMPTS = ("Say water 3", "Say fox 7")
SETTINGS = {"max_new_tokens": 16, "device": "cpu"}


@pytest.fixture
def pair(trained: Path, tmp_path: Path) -> list[str]:
    """Two runs of one base: the trained one, and one with the adapter of an earlier step in its place."""
    found = []
    for name in ("one", "two"):
        shutil.copytree(trained, tmp_path / name)
        found.append(str(tmp_path / name))
    weights = tmp_path / "two" / "adapter" / "adapter_model.safetensors"
    halve(weights)
    return found


def halve(weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor * 0.1 for name, tensor in load_file(weights).items()}, weights)
    seal_adapter(weights.parents[1])


def asked(runs: list[str], control: Control | None = None, **more: Any) -> list[Event]:
    settings = {**SETTINGS, **more.pop("settings", {})}
    job = ReplayJob(runs, more.pop("prompts", PROMPTS), settings, **more)
    return list(replay_job(job, control or Control()))


def result(events: list[Event]) -> dict[str, Any]:
    assert isinstance(events[-1], RunFinished)
    return dict(events[-1].result)


def texts(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(a["prompt"], a["side"], a["text"]) for a in found["answers"]]


def test_every_prompt_is_asked_of_every_run_and_of_the_base_on_one_loaded_model(pair: list[str]) -> None:
    events = asked(pair)
    found = result(events)
    assert [e for e in events if isinstance(e, ModelLoaded)] == [
        e for e in events if isinstance(e, ModelLoaded)
    ][:1]
    assert [c["side"] for c in found["columns"]] == ["base", *pair]
    assert (found["asked"], found["kept"]) == (6, 0)
    told = [(PROMPTS[e.request], e.side, e.text) for e in events if isinstance(e, AnswerFinished)]
    assert told == texts(found)
    talk = Talk(pair[0])
    for prompt in PROMPTS:
        talk.ask(messages=[{"role": "user", "content": prompt}], settings={"max_new_tokens": 16})
        for side in ("base", "tuned"):
            answer = talk.until(AnswerFinished)
            assert (prompt, {"tuned": pair[0]}.get(side, side), answer.text) in texts(found)  # type: ignore[attr-defined]
    talk.end()
    assert texts(found)[1][2] == "water plants fox dog" != texts(found)[2][2]


def test_what_a_run_keeps_is_not_asked_again(pair: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = result(asked(pair[:1]))
    with monkeypatch.context() as patch:
        patch.setattr(replay.session, "load_chat_model", None)  # nothing is missing: nothing is loaded
        again = result(asked(pair[:1]))
    assert texts(again) == texts(first)
    assert (again["asked"], again["kept"]) == (0, 4)
    assert all(answer["is_kept"] for answer in again["answers"])
    later = result(
        asked(pair)
    )  # a later run is compared with the earlier one: only its own answers are missing
    assert (later["asked"], later["kept"]) == (2, 4)
    assert (
        result(asked(pair[:1], settings={"temperature": 3.0}))["asked"] == 0
    )  # does nothing without sampling
    assert result(asked(pair[:1], settings={"max_new_tokens": 3}))["asked"] == 4
    assert result(asked(pair[:1], again=True))["asked"] == 4


def test_another_training_of_the_run_answers_anew(pair: list[str]) -> None:
    asked(pair[:1], with_base=False)
    halve(Path(pair[0]) / "adapter" / "adapter_model.safetensors")
    assert result(asked(pair[:1], with_base=False))["asked"] == 2


def test_stopping_keeps_the_answers_given_and_goes_on_there(pair: list[str]) -> None:
    control = Control()
    events = replay_job(ReplayJob(pair, PROMPTS, SETTINGS), control)
    for event in events:
        if isinstance(event, AnswerFinished):
            control.request_stop()
            break
    with pytest.raises(Cancelled):
        list(events)
    assert len(answers.read(RunFolder(Path(pair[0])))) == 1
    assert result(asked(pair))["kept"] == 1


def test_half_a_line_of_a_killed_writer_spoils_no_other(pair: list[str]) -> None:
    asked(pair[:1], prompts=PROMPTS[:1], with_base=False)
    file = Path(pair[0]) / answers.FILE
    file.write_bytes(file.read_bytes() + b'{"key": "abc", "pro')
    asked(pair[:1], with_base=False)
    assert {a.prompt for a in answers.read(RunFolder(Path(pair[0]))).values()} == set(PROMPTS)


def test_runs_of_another_base_are_asked_on_their_own(
    pair: list[str], model_dir: Path, tmp_path: Path
) -> None:
    config = tiny_runs.tiny_config(
        model_dir, tiny_runs.data_file(tmp_path), tmp_path / "runs", training__max_steps=1,
        quantization__double_quant=False, output__name="single", data__system_prompt="Be short.",
    )  # fmt: skip
    single = str(tiny_runs.finished_run(config))
    events = asked([pair[0], single], prompts=PROMPTS[:1])
    found = result(events)
    assert len([e for e in events if isinstance(e, ModelLoaded)]) == 2
    bases = [c["side"] for c in found["columns"] if c["is_base"]]
    assert len(bases) == 2
    assert all(side.startswith("base ") for side in bases)
    assert len(found["answers"]) == 4


@pytest.mark.parametrize(
    ("runs", "prompts", "code"),
    [(["nowhere"], PROMPTS, "run.missing"), ([], PROMPTS, "replay.empty"), (None, (), "replay.empty")],
)
def test_nothing_to_ask_is_refused(pair: list[str], runs: Any, prompts: Any, code: str) -> None:
    with pytest.raises(EngineError) as refused:
        asked(pair if runs is None else runs, prompts=prompts)
    assert refused.value.code == code
