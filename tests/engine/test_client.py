"""The pipe between a driver and an engine process: order, noise, death, stop, orphans."""

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

from qlora_engine import client, jobs, launch
from qlora_engine.client import InlineEngine, ProcessEngine, died
from qlora_engine.events import TERMINAL, Event, PhaseChanged, Progressed, RunFailed, RunFinished, RunStopped

ROOT = Path(__file__).parents[2]
SCRIPTED = [sys.executable, str(ROOT / "tests/support/scripted_worker.py")]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Event]]:
    monkeypatch.setattr(launch, "worker_command", lambda: SCRIPTED)
    return lambda script: list(ProcessEngine().run(jobs.TrainJob({"script": script})))


def assert_one_end(events: list[Event]) -> None:
    assert [isinstance(e, TERMINAL) for e in events].count(True) == 1
    assert isinstance(events[-1], TERMINAL)


def test_stray_prints_cannot_corrupt_the_stream(scripted: Callable[[str], list[Event]]) -> None:
    events = scripted("noise")
    assert events == [PhaseChanged("training", "script noise"), RunFinished({"script": "noise"})]


def test_a_vanished_child_becomes_a_failure_with_exit_code_and_log(
    scripted: Callable[[str], list[Event]],
) -> None:
    events = scripted("die")
    assert_one_end(events)
    failure = events[-1]
    assert isinstance(failure, RunFailed)
    assert failure.exit_code == 7
    assert "the last words" in failure.log_tail


def test_a_cuda_exit_of_bitsandbytes_is_recognised(scripted: Callable[[str], list[Event]]) -> None:
    failure = scripted("cuda")[-1]
    assert isinstance(failure, RunFailed)
    assert failure.code == "engine.cuda"
    assert "out of memory" in failure.message
    assert "micro-batch" in failure.hint


@pytest.mark.parametrize(
    ("script", "code"), [("bug", "engine.bug"), ("user", "model.missing"), ("no end", "engine.no_end")]
)
def test_every_bad_end_is_one_event(scripted: Callable[[str], list[Event]], script: str, code: str) -> None:
    events = scripted(script)
    assert_one_end(events)
    assert isinstance(events[-1], RunFailed)
    assert events[-1].code == code


def test_stop_reaches_the_child_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "worker_command", lambda: SCRIPTED)
    engine = ProcessEngine()
    events = []
    for event in engine.run(jobs.TrainJob({"script": "until stopped"})):
        events.append(event)
        if isinstance(event, Progressed) and event.done == 5:
            engine.request_stop("save")
    assert events[-1] == RunStopped("save", is_resumable=True, result={})
    assert engine.pid is not None
    assert not psutil.pid_exists(engine.pid)


def test_a_stop_sent_before_the_start_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "worker_command", lambda: SCRIPTED)
    engine = ProcessEngine()
    engine.request_stop("save")
    events = list(engine.run(jobs.TrainJob({"script": "until stopped"})))
    assert isinstance(events[-1], RunStopped)


def test_discard_ends_even_a_child_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "worker_command", lambda: SCRIPTED)
    monkeypatch.setattr(client, "DISCARD_GRACE_SECONDS", 0.3)
    monkeypatch.setattr(client, "KILL_GRACE_SECONDS", 0.3)
    engine = ProcessEngine()
    events = []
    for event in engine.run(jobs.TrainJob({"script": "busy"})):
        events.append(event)
        engine.request_stop("discard")
    assert isinstance(events[-1], RunFailed)
    assert events[-1].exit_code == -signal.SIGKILL


def test_an_orphan_saves_and_ends(tmp_path: Path) -> None:
    marker = tmp_path / "why"
    driver = (
        "import sys; from qlora_engine import client, jobs, launch; "
        f"launch.worker_command = lambda: {SCRIPTED!r}\n"
        f"for e in client.ProcessEngine().run(jobs.TrainJob({{'script': 'until stopped', 'marker': {str(marker)!r}}})):\n"
        "    print('event', flush=True)\n"
    )
    window = subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert window.stdout is not None
    for _ in range(5):
        window.stdout.readline()
    children = psutil.Process(window.pid).children()
    os.kill(window.pid, signal.SIGKILL)
    window.wait()
    window.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert marker.read_text(encoding="utf-8") == "orphaned"


DEAF = (
    "import os, re\nfrom qlora_engine import jobs, worker\nfrom qlora_engine.events import PhaseChanged\n"
    "def stuck(job, control):\n"
    "    yield PhaseChanged('training', str(os.getpid()))\n"
    "    yield PhaseChanged('training', 'stuck')\n"
    "    re.match('(a+)+$', 'a' * 60 + 'b')\n"
    "jobs.handler_of = lambda job: stuck\nworker.main()\n"
)
"""An engine inside C code that holds Python's lock: none of its threads and handlers runs."""
DRIVER = (
    "from qlora_engine import client, jobs, launch\n"
    f"launch.worker_command = lambda: {[sys.executable, '-P', '-c', DEAF]!r}\n"
    "for e in client.ProcessEngine().run(jobs.TrainJob({}, detached=DETACHED)):\n    print(e.text, flush=True)\n"
)


def orphaned(is_detached: bool) -> psutil.Process:
    """A deaf engine whose driver was killed."""
    environment = {**os.environ, "QLORA_DEAF_SECONDS": "1", "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(
        [sys.executable, "-P", "-c", DRIVER.replace("DETACHED", str(is_detached))], stdout=subprocess.PIPE, text=True,
        env=environment,
    )  # fmt: skip
    assert driver.stdout is not None
    engine = psutil.Process(int(driver.stdout.readline()))
    assert driver.stdout.readline() == "stuck\n"
    driver.kill()
    driver.wait()
    driver.stdout.close()
    return engine


def test_an_orphan_that_holds_pythons_lock_ends() -> None:
    engine = orphaned(is_detached=False)
    beside = engine.children()
    assert len(beside) == 1
    _, alive = psutil.wait_procs([engine, *beside], timeout=60)
    assert not alive


def test_a_detached_engine_that_holds_pythons_lock_goes_on() -> None:
    engine = orphaned(is_detached=True)
    assert not engine.children()
    time.sleep(4)
    assert engine.is_running()
    engine.kill()


def test_an_engine_that_was_left_is_watched_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "worker_command", lambda: SCRIPTED)
    engine, events = ProcessEngine(), []
    for event in engine.run(jobs.TrainJob({"script": "until stopped", "marker": str(tmp_path / "why")})):
        events.append(event)
        if isinstance(event, Progressed) and len(events) == 3:
            assert engine.pid is not None
            worker = psutil.Process(engine.pid)
            (watcher,) = worker.children()
            engine.leave()
    assert not psutil.wait_procs([watcher], timeout=10)[1]
    worker.kill()


def test_the_inline_engine_gives_the_same_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(job: jobs.TrainJob, control: object) -> object:
        raise ZeroDivisionError("division by zero")
        yield

    monkeypatch.setattr(jobs, "handler_of", lambda job: failing)
    events = list(InlineEngine().run(jobs.TrainJob({})))
    assert_one_end(events)
    assert isinstance(events[-1], RunFailed)
    assert events[-1].code == "engine.bug"


def test_death_by_signal_is_named() -> None:
    assert "SIGKILL" in died(-9, "").message


def test_a_python_traceback_is_not_taken_for_a_cuda_exit() -> None:
    assert died(1, "Traceback (most recent call last): cuda error").code == "engine.died"


def test_the_child_starts_fast_enough_to_feel_instant(scripted: Callable[[str], list[Event]]) -> None:
    began = time.monotonic()
    scripted("noise")
    assert time.monotonic() - began < 10
