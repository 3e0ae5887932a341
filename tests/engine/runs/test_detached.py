"""Runs that go on when whoever started them is gone, and are picked up by the next who looks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from qlora_engine import jobs, launch
from qlora_engine.client import ProcessEngine
from qlora_engine.events import RunFinished, RunLeft, RunStarted, StepFinished
from qlora_engine.runs import plans
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.watch import Watch, WatchEngine
from tests.support.run_folders import config_of

ROOT = Path(__file__).parents[3]
SCRIPTED = [sys.executable, str(ROOT / "tests/support/scripted_worker.py")]
PATIENCE_SECONDS = 30.0


def eventually(holds: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def job_in(folder: RunFolder, marker: Path, detached: bool) -> jobs.TrainJob:
    return jobs.TrainJob({"script": "in its folder", "marker": str(marker)}, str(folder.path), detached)


def steps_of(events: list[object]) -> list[int]:
    return [event.step for event in events if isinstance(event, StepFinished)]


def test_a_killed_window_loses_no_point_of_a_detached_run(tmp_path: Path) -> None:
    folder, marker = plans.create(config_of(output__name="night")), tmp_path / "enough"
    driver = (
        "from qlora_engine import client, jobs, launch\n"
        f"launch.worker_command = lambda: {SCRIPTED!r}\n"
        f"for event in client.ProcessEngine().run(jobs.{job_in(folder, marker, detached=True)!r}):\n"
        "    print('event', flush=True)\n"
    )
    window = subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert window.stdout is not None
    for _ in range(5):
        window.stdout.readline()
    (engine,) = psutil.Process(window.pid).children()
    os.kill(window.pid, signal.SIGKILL)
    window.wait()
    window.stdout.close()
    watch = Watch(folder.path)
    seen: list[object] = list(watch.new())
    at_reopening = len(seen)
    os.kill(engine.pid, signal.SIGHUP)  # its terminal was closed too

    def look() -> bool:
        seen.extend(watch.new())
        return len(seen) > at_reopening + 10

    eventually(look)
    marker.touch()
    eventually(lambda: seen.extend(watch.new()) or watch.end)
    assert isinstance(watch.end, RunFinished)
    assert steps_of(seen) == list(range(1, RunFolder(folder.path).record()["last_step"] + 1))
    psutil.wait_procs([engine], timeout=10)


def test_one_leaves_an_attached_run_and_another_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "worker_command", lambda: SCRIPTED)
    folder = plans.create(config_of(output__name="left"))
    engine = ProcessEngine()
    events = engine.run(job_in(folder, tmp_path / "never", detached=False))
    assert isinstance(next(event for event in events if isinstance(event, RunStarted)), RunStarted)
    engine.leave()
    assert list(events)[-1] == RunLeft(str(folder.path))
    assert RunFolder(folder.path).state() == "running"
    watching = WatchEngine(folder.path)
    heard = watching.run()
    next(heard)
    watching.request_stop()
    rest = list(heard)
    assert type(rest[-1]).__name__ == "RunStopped"
    assert steps_of(rest) == list(range(1, RunFolder(folder.path).record()["last_step"] + 1))
    assert engine.pid is not None
    psutil.wait_procs([p for p in psutil.Process().children() if p.pid == engine.pid], timeout=10)
