"""A real run whose window is killed under way and that the next one picks up; the rest is tests/engine/runs/test_detached.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlora_engine.events import EvaluationFinished, Event, RunFinished, StepFinished
from qlora_engine.runs import curves, plans
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.watch import Watch
from qlora_engine.training.trackers import FOLDER
from tests.engine.training.conftest import MakeConfig
from tests.support.tiny_runs import train

ROOT = Path(__file__).parents[3]
STEPS = 30
PATIENCE_SECONDS = 180.0


@pytest.mark.slow
def test_the_curve_of_a_detached_run_has_every_point(make_config: MakeConfig) -> None:
    folder = plans.create(make_config(training__max_steps=STEPS, training__eval_every_steps=10))
    job = plans.start_job(folder, detached=True)
    driver = (
        "from qlora_engine import client, jobs, events\n"
        f"for event in client.ProcessEngine().run(jobs.{job!r}):\n"
        "    if isinstance(event, events.StepFinished):\n"
        "        print(event.step, flush=True)\n"
    )
    window = subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert window.stdout is not None
    assert window.stdout.readline() == "1\n"
    os.kill(window.pid, signal.SIGKILL)
    window.wait()
    window.stdout.close()

    watch, seen, until = Watch(folder.path), list[Event](), time.monotonic() + PATIENCE_SECONDS
    while watch.end is None and time.monotonic() < until:
        seen += watch.new()
        time.sleep(0.05)
    assert isinstance(watch.end, RunFinished)
    assert [event.step for event in seen if isinstance(event, StepFinished)] == list(range(1, STEPS + 1))
    assert [event.step for event in seen if isinstance(event, EvaluationFinished)] == [0, 10, 20, 30]
    assert list(curves.read(folder.path).columns["step"]) == list(range(1, STEPS + 1))
    assert RunFolder(folder.path).state() == "finished"
    assert len(list((folder.path / FOLDER).iterdir())) == 1
    assert "Warning" not in (folder.path / "log.txt").read_text(encoding="utf-8"), (
        "nobody can do anything about it"
    )


def test_a_run_that_ends_keeps_its_long_curve_for_the_first_comparison(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(make_config(training__max_steps=2))[-1]
    monkeypatch.setattr(curves, "CACHED_FROM_BYTES", 1)
    second = train(make_config(training__max_steps=2))[-1]
    assert isinstance(first, RunFinished)
    assert isinstance(second, RunFinished)
    short, long = (RunFolder(Path(str(end.result["run_dir"]))).metrics_path for end in (first, second))
    assert [curves._place(path).exists() for path in (short, long)] == [False, True]
    assert curves._cached(long, curves._key(long)) is not None, "something was written after it was kept"

    def out_of_memory(_: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(curves, "read", out_of_memory)
    assert isinstance(train(make_config(training__max_steps=2))[-1], RunFinished), "only the time is lost"
