"""Driving a job from the terminal: how it ends, what Ctrl+C does, what a person reads on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.cli import driving, progress, story
from qlora_engine.errors import EngineError
from qlora_engine.events import (
    CheckpointSaved,
    EvaluationFinished,
    Event,
    ModelLoaded,
    OptimizerBuilt,
    Paused,
    PhaseChanged,
    PlanMade,
    Progressed,
    RunFailed,
    RunFinished,
    RunStopped,
    SampleAnswered,
    StepFinished,
)
from qlora_engine.jobs import Job

ESTIMATE = {"double_quant": {"peak_bytes": 2 * 1024**3}, "single_quant": {"peak_bytes": 3 * 1024**3}}
PLAN = PlanMade(45, 45, 4, 2, 360, 40, 22_719, 80, "cpu", "float32", 2 * 1024**3, ESTIMATE)
STEP = StepFinished(3, 60, 0.1, 1.5, 1e-4, 0.3, 64, 32, 0.5, 128.0, 125.0, None, 1.0)


class ScriptedEngine:
    """Yields the events it was given; `None` waits until it is asked to stop."""

    def __init__(self, *script: Event | None, is_deaf: bool = False) -> None:
        self.script = script
        self.is_deaf = is_deaf
        self.stop_modes: list[str] = []
        self.was_killed = False
        self._stopped = threading.Event()

    def run(self, job: Job) -> Iterator[Event]:
        for event in self.script:
            if event is None:
                while not self._stopped.wait(0.01):
                    pass
            else:
                yield event

    def send(self, command: Mapping[str, Any]) -> None:
        raise AssertionError("no command is expected")

    def request_stop(self, mode: str = "save") -> None:
        self.stop_modes.append(mode)
        if not self.is_deaf:
            self._stopped.set()

    def kill(self) -> None:
        self.was_killed = True


def drive(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> tuple[Event, list[Event]]:
    monkeypatch.setattr(driving, "make_engine", lambda: engine)
    seen: list[Event] = []
    return driving.run_job(Job(), seen.append), seen


def press_ctrl_c(after_seconds: float) -> None:
    def press() -> None:
        time.sleep(after_seconds)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()


def test_the_good_ends_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    finished = RunFinished({"path": "x"})
    end, seen = drive(ScriptedEngine(STEP, finished), monkeypatch)
    assert end is finished
    assert seen == [STEP, finished]


@pytest.mark.parametrize(("is_input_error", "code"), [(True, 2), (False, 1)])
def test_a_failure_is_the_job_s_own_sentence(
    is_input_error: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = RunFailed("data.empty", "the dataset is empty", "choose another", is_input_error=is_input_error)
    with pytest.raises(EngineError) as caught:
        drive(ScriptedEngine(failed), monkeypatch)
    assert (caught.value.message, caught.value.hint) == ("the dataset is empty", "choose another")
    assert caught.value.exit_code == code


def test_what_the_engine_said_before_dying_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path))
    failed = RunFailed("engine.died", "The engine ended", "resume", 1, "CUDA error at line 7")
    with pytest.raises(EngineError) as caught:
        drive(ScriptedEngine(failed), monkeypatch)
    (log,) = (tmp_path / "logs").iterdir()
    assert str(log) in caught.value.hint
    assert log.read_text(encoding="utf-8") == "CUDA error at line 7"


def test_ctrl_c_once_stops_and_saves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    engine = ScriptedEngine(STEP, None, RunStopped("stopped by the user", True, {}))
    press_ctrl_c(0.2)
    end, _ = drive(engine, monkeypatch)
    assert isinstance(end, RunStopped)
    assert engine.stop_modes == ["save"]
    assert not engine.was_killed
    assert "Press Ctrl+C again to quit" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_quits(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(STEP, None, RunStopped("", True, {}), is_deaf=True)
    press_ctrl_c(0.2)
    press_ctrl_c(0.5)
    with pytest.raises(KeyboardInterrupt):
        drive(engine, monkeypatch)
    assert engine.was_killed


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (PhaseChanged("loading", "Loading starter in 4 bits on cpu"), "Loading starter in 4 bits on cpu"),
        (EvaluationFinished(0, 3.5, 10, 0.1, True, 1.0), "Held-out loss before training: 3.5000"),
        (
            EvaluationFinished(5, 1.25, 10, 0.1, True, 1.0),
            "Held-out loss at step 5: 1.2500, the lowest so far",
        ),
        (EvaluationFinished(9, 1.5, 10, 0.1, False, 1.0), "Held-out loss at step 9: 1.5000"),
        (CheckpointSaved(5, "/x", 2 * 1024**2, "time", 0.1, 1.0), "Checkpoint of step 5 saved (2.00 MiB)"),
        (CheckpointSaved(5, "/x", 2 * 1024**2, "finish", 0.1, 1.0), None),
        (SampleAnswered(0, "hi?", "a\n b", 4, 0.1), "Answer before training to 'hi?': a b"),
        (SampleAnswered(8, "hi?", "", 0, 0.1), "Answer at step 8 to 'hi?': (nothing)"),
        (
            OptimizerBuilt("paged_adamw_8bit", "PagedAdamW8bit", 1024**2, 0, 0, 0, "it is on the CPU"),
            "Optimizer PagedAdamW8bit keeps 1.00 MiB (it is on the CPU)",
        ),
        (
            ModelLoaded(
                {
                    "quant_type": "nf4",
                    "is_double_quant": True,
                    "packed_bytes": 1024**2,
                    "constants_bytes": 2048,
                    "unquantized_bytes": 1024,
                    "device": "cpu",
                    "compute_dtype": "float32",
                }
            ),
            (
                "Loaded as NF4 with double quantization: 1.00 MiB of 4-bit weights, 2.00 KiB of quantization constants, "
                "1.00 KiB not quantized; computing in float32 on the CPU"
            ),
        ),
        (
            PLAN,
            (
                "Plan: 45 steps of 8 rows, 4 at a time; 360 rows to train on, 40 held out, none longer than 80 tokens\n"
                "Memory needed at the peak: about 2.00 GiB with double quantization, 3.00 GiB without"
            ),
        ),
        (Paused(7), "Paused at step 7"),
    ],
)
def test_happenings_in_words(event: Event, words: str | None) -> None:
    assert story.sentence(event) == words


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (STEP, "step 3/60  loss 1.5000  128 tokens/s  2 min left"),
        (replace(STEP, eta_seconds=None), "step 3/60  loss 1.5000  128 tokens/s"),
        (Progressed("downloading", 1024**2, None, "bytes"), "downloading: 1.00 MiB"),
        (Progressed("downloading", 1024**2, 2 * 1024**2, "bytes"), "downloading: 1.00 MiB of 2.00 MiB"),
        (Progressed("tokenizing", 5, None, "rows"), "tokenizing: 5 rows"),
        (Progressed("tokenizing", 5, 10, "rows"), "tokenizing: 5 of 10 rows"),
    ],
)
def test_figures_in_words(event: Event, words: str) -> None:
    assert story.numbers(event) == words


def test_lines_in_a_log_do_not_flood(capsys: pytest.CaptureFixture[str]) -> None:
    lines = progress.Lines()
    for number in range(1, 101):
        lines.show(replace(STEP, step=number, total_steps=100))
        lines.show(PhaseChanged("evaluating", "Measuring the held-out loss"))
        lines.show(Progressed("converting", number, 100, "tensors"))
    lines.show(PhaseChanged("saving", "Saving the adapter"))
    first, measuring, converting, last, saving = capsys.readouterr().err.splitlines()
    assert first == "  [....................] step 1/100  loss 1.5000  128 tokens/s  2 min left"
    assert measuring == "Measuring the held-out loss"
    assert converting == story.ANNOUNCED["converting"]
    assert last.startswith("  [####################] step 100/100")
    assert saving == "Saving the adapter"


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (0, 4, "[....................] "),
        (1, 2, "[##########..........] "),
        (9, 4, "[####################] "),
        (3, None, ""),
    ],
)
def test_a_bar_of_plain_characters(done: int, total: int | None, shown: str) -> None:
    assert story.bar(done, total) == shown


def test_bars_show_what_happens(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Bars() as bars:
        bars.show(Progressed("loading", 1, None, "tensors"))
        bars.show(Progressed("loading", 2, 4, "tensors"))
        bars.show(STEP)
        bars.show(EvaluationFinished(5, 1.25, 10, 0.1, True, 1.0))
    captured = capsys.readouterr()
    assert "Held-out loss at step 5: 1.2500" in captured.err
    assert captured.out == ""
