"""The QThread that hosts an engine: signals, endings, and the PySide defect that aborted the interpreter."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QEventLoop, QObject, QThread, QTimer
from pytestqt.qtbot import QtBot

from app.services.engine_thread import EngineThread, JobRunner, engine_factory
from app.services.gui_calls import GuiCalls
from qlora_engine import events as ev
from qlora_engine.client import InlineEngine, ProcessEngine
from qlora_engine.jobs import Job, TrainJob
from qlora_engine.spare import Spare

ROOT = Path(__file__).resolve().parents[2]
JOB = TrainJob({"script": "none"})


class ListEngine:
    """Gives out a list, then perhaps raises."""

    def __init__(self, told: list[ev.Event], error: Exception | None = None) -> None:
        self.told, self.error, self.thread_name = told, error, ""

    def run(self, job: Job) -> Iterator[ev.Event]:
        self.thread_name = threading.current_thread().name
        yield from self.told
        if self.error is not None:
            raise self.error

    def send(self, command: Mapping[str, Any]) -> None:
        """Nothing to tell."""

    def request_stop(self, mode: str = "save") -> None:
        """Ends by itself."""


def run_to_end(qtbot: QtBot, engine: ListEngine) -> list[ev.Event]:
    runner = JobRunner(lambda: engine)
    heard: list[ev.Event] = []
    runner.event_arrived.connect(heard.append)
    with qtbot.waitSignal(runner.ended, timeout=20_000):
        runner.start(JOB)
    assert not runner.is_running
    return heard


def test_every_event_arrives_once_and_in_order(qtbot: QtBot) -> None:
    steps: list[ev.Event] = [ev.Progressed("training", n, 3000, "steps") for n in range(3000)]
    told = [*steps, ev.RunFinished({})]
    assert run_to_end(qtbot, ListEngine(told)) == told


def test_the_engine_runs_in_a_thread_that_is_not_the_windows(qtbot: QtBot) -> None:
    engine = ListEngine([ev.RunFinished({})])
    run_to_end(qtbot, engine)
    assert engine.thread_name != threading.main_thread().name


def test_an_engine_that_raises_ends_as_a_failed_run(qtbot: QtBot) -> None:
    heard = run_to_end(qtbot, ListEngine([ev.Paused(1)], RuntimeError("boom")))
    assert isinstance(heard[-1], ev.RunFailed)
    assert "boom" in heard[-1].message


def test_an_engine_that_ends_without_a_word_ends_as_a_failed_run(qtbot: QtBot) -> None:
    heard = run_to_end(qtbot, ListEngine([ev.Paused(1)]))
    assert [type(event) for event in heard] == [ev.Paused, ev.RunFailed]


def test_a_runner_can_be_used_again_and_refuses_a_second_job_meanwhile(qtbot: QtBot) -> None:
    made: list[ListEngine] = []

    def make() -> ListEngine:
        made.append(ListEngine([ev.RunFinished({})]))
        return made[-1]

    runner = JobRunner(make)
    for _ in range(2):
        with qtbot.waitSignal(runner.ended, timeout=20_000):
            runner.start(JOB)
            runner.start(JOB)
    assert len(made) == 2


def test_the_setting_chooses_the_engine() -> None:
    spare = Spare()
    engine = engine_factory("process", spare)()
    assert isinstance(engine, ProcessEngine)
    assert engine._spare is spare
    assert isinstance(engine_factory("inline", spare)(), InlineEngine)


def test_it_is_a_qthread() -> None:
    assert issubclass(EngineThread, QThread)


EMITS = """
import sys
from PySide6.QtCore import QCoreApplication, QObject, Signal
class Source(QObject):
    told = Signal(object)
app = QCoreApplication([])
source, heard = Source(), []
source.told.connect(heard.append)
before = sys.getrefcount(True)
for number in range(5000):
    source.told.emit(number)
print(len(heard), before - sys.getrefcount(True))
"""


def test_emitting_signals_does_not_eat_references() -> None:
    """PySide 6.12.0 on CPython 3.11 lost one reference to True per emit and aborted after about 570."""
    done = subprocess.run(
        [sys.executable, "-c", EMITS], capture_output=True, text=True, cwd=ROOT, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    count, lost = map(int, done.stdout.split())
    assert count == 5000
    assert abs(lost) < 50


@pytest.mark.parametrize("version", ["6.12.0"])
def test_the_broken_version_is_excluded_by_the_requirements(version: str) -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [Requirement(text) for text in project["dependencies"]]
    pin = next(found for found in pins if found.name == "PySide6-Essentials")
    assert version not in pin.specifier


def test_calls_from_many_threads_arrive_in_the_gui_thread_in_the_order_of_each(qtbot: QtBot) -> None:
    parent = QObject()
    calls = GuiCalls(parent)
    heard: list[tuple[int, int, bool]] = []

    def speak(who: int) -> None:
        for number in range(500):
            calls.post(partial(hear, who, number))

    def hear(who: int, number: int) -> None:
        heard.append((who, number, threading.current_thread() is threading.main_thread()))

    threads = [threading.Thread(target=speak, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    qtbot.waitUntil(lambda: len(heard) == 2000, timeout=20_000)
    for who in range(4):
        assert [entry for entry in heard if entry[0] == who] == [(who, number, True) for number in range(500)]


def test_one_look_holds_the_event_loop_up_for_a_moment_only(qtbot: QtBot) -> None:
    parent = QObject()
    calls = GuiCalls(parent)
    turns: list[int] = []
    done: list[int] = []
    timer = QTimer(parent, interval=0)
    timer.timeout.connect(lambda: turns.append(len(done)))
    for _ in range(40):
        calls.post(lambda: (time.sleep(0.004), done.append(1))[1])
    timer.start()
    qtbot.waitUntil(lambda: len(done) == 40, timeout=20_000)
    assert max(b - a for a, b in pairwise(turns)) <= 3, "other events have their turn between the calls"


def test_after_the_end_nothing_is_called(qtbot: QtBot) -> None:
    parent = QObject()
    calls = GuiCalls(parent)
    heard: list[int] = []
    calls.post(lambda: heard.append(1))
    calls.close()
    calls.post(lambda: heard.append(2))
    qtbot.wait(60)
    assert heard == []


def test_a_call_that_calls_again_is_heard_in_order_and_nobody_looks_while_nobody_speaks(qtbot: QtBot) -> None:
    parent = QObject()
    calls = GuiCalls(parent)
    heard: list[int] = []
    looks: list[int] = []
    look = calls._look
    calls._rest.timeout.connect(lambda: looks.append(1))
    calls._look = lambda: (looks.append(1), look())[1]  # type: ignore[method-assign]
    calls.post(lambda: (heard.append(1), calls.post(lambda: heard.append(2)))[0])
    qtbot.waitUntil(lambda: heard == [1, 2], timeout=5000)
    qtbot.wait(100)
    looks.clear()
    qtbot.wait(300)
    assert not looks


def test_what_follows_a_call_is_heard_though_it_fails_or_waits_in_an_event_loop_of_its_own(
    qtbot: QtBot,
) -> None:
    parent = QObject()
    calls = GuiCalls(parent)
    heard: list[str] = []
    loop = QEventLoop(parent)

    def fail() -> None:
        raise RuntimeError("of one call")

    def wait() -> None:
        heard.append("opened")
        loop.exec()
        heard.append("closed")

    with qtbot.captureExceptions() as failures:
        calls.post(fail)
        calls.post(wait)
        calls.post(lambda: (heard.append("inside"), loop.quit())[0])
        qtbot.waitUntil(lambda: len(heard) == 3, timeout=5000)
    assert heard == ["opened", "inside", "closed"]
    assert [str(failure[1]) for failure in failures] == ["of one call"]


def test_more_is_said_than_the_socket_holds(qtbot: QtBot) -> None:
    parent = QObject()
    calls = GuiCalls(parent)
    heard: list[int] = []
    for number in range(300_000):
        calls.post(partial(heard.append, number))
    qtbot.waitUntil(lambda: len(heard) == 300_000, timeout=20_000)
    assert heard == list(range(300_000))
