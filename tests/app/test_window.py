"""A run in the window as a person uses it, with engines that do what the test says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from pytestqt.qtbot import QtBot

from app.tab import DRAFT
from app.tabs import all_tabs
from qlora_engine import events as ev
from qlora_engine.config import TrainingConfig
from qlora_engine.jobs import ResumeJob, TrainJob
from qlora_engine.runs.record import RunFolder
from tests.app import events_of_a_run as told
from tests.app.acts import LEFT, answer_with, start, state_of
from tests.app.conftest import MakeWindow, engine_of
from tests.support.run_folders import add_checkpoint


def test_every_tab_is_reachable_by_click_and_by_key(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    tabs = [tab for tab in all_tabs() if DRAFT in tab.of]
    assert len(tabs) == 9
    for tab in tabs:
        qtbot.mouseClick(window.bar.items[tab.heading], LEFT)
        screen = window.tabs.screens[window.tabs.current]
        if tab.name != window.tabs.current:
            qtbot.mouseClick(screen.siblings._buttons[tab.name], LEFT)
        assert window.tabs.current == tab.name
        assert window.stack.currentWidget() is window.tabs.screens[tab.name]
    for number, tab in enumerate(tabs, start=1):
        qtbot.keyClick(window, Qt.Key(Qt.Key.Key_0 + number), Qt.KeyboardModifier.ControlModifier)
        assert window.tabs.current == tab.name
    qtbot.mouseClick(window.bar.items["Setup"], LEFT)
    assert window.tabs.current == "memory", "a heading leads back to where one was under it"


def test_a_run_from_start_to_end_is_painted(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    start(qtbot, window)
    assert window.tabs.current == "live"
    engine = engine_of(qtbot, TrainJob)
    assert isinstance(engine.job, TrainJob)
    assert engine.job.config["model"]["name"] == "starter"
    engine.tell(*told.whole_run(40))
    screen = window.tabs.screens["live"]
    qtbot.waitUntil(lambda: screen.numbers["Step"].value.text() == "40 / 40", timeout=10_000)
    qtbot.waitUntil(lambda: screen.charts is not None, timeout=20_000)
    qtbot.waitUntil(lambda: len(screen.charts.loss._data["loss"][0]) == 40)
    assert "Checkpoint at step 40 saved" in screen.log.toPlainText()
    assert not window.card.isVisible()
    assert window.head.name.text() == "demo"
    qtbot.waitUntil(lambda: window.head.sentence.text() == "Training, step 40 of 40")
    engine.tell(told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
    assert window.banner.text.startswith("Finished. Held-out loss 0.9396")
    assert screen.outcome.text.startswith("Learned: held-out loss 3.168 before, 0.9396 after (-70\u00a0%)")
    assert window.head.primary.text() == "Try it"


def test_pause_continue_and_wishes_reach_the_engine(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    start(qtbot, window)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.step(1))
    qtbot.waitUntil(lambda: window.head.pause.isEnabled())
    qtbot.mouseClick(window.head.pause, LEFT)
    engine.tell(ev.Paused(1))
    qtbot.waitUntil(lambda: window.head.pause.text() == "Continue")
    qtbot.mouseClick(window.head.pause, LEFT)
    engine.tell(ev.Continued(1))
    qtbot.waitUntil(lambda: state_of(window) == "running")
    screen = window.tabs.screens["live"]
    qtbot.waitUntil(screen.evaluate.isEnabled)
    qtbot.mouseClick(screen.evaluate, LEFT)
    assert [c["command"] for c in engine.commands] == ["pause", "continue", "evaluate"]
    engine.tell(told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


@pytest.mark.parametrize(
    ("answer", "stops"),
    [("Stop and save", ["save"]), ("Stop without saving", ["discard"]), ("Keep training", [])],
)
def test_stop_asks_three_ways(qtbot: QtBot, make_window: MakeWindow, answer: str, stops: list[str]) -> None:
    window = make_window()
    start(qtbot, window)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.step(7))
    qtbot.waitUntil(lambda: window.studio.trainer.run.last_step is not None)
    timer = answer_with(answer)
    qtbot.mouseClick(window.head.stop, LEFT)
    assert not timer.isActive()
    assert engine.stops == stops
    if stops:
        qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
        assert "Stopped" in window.banner.text
        assert ("and saved" in window.banner.text) == (stops == ["save"])
    else:
        assert state_of(window) == "running"
        engine.tell(told.finished())
        qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


def test_closing_in_mid_run_asks_and_saves_before_it_goes(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    start(qtbot, window)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.step(7))
    qtbot.waitUntil(lambda: state_of(window) == "running")
    timer = answer_with("Keep training")
    assert not window.close()
    assert not timer.isActive()
    assert window.isVisible()
    assert engine.stops == []
    timer = answer_with("Save and close")
    window.close()
    assert not timer.isActive()
    qtbot.waitUntil(lambda: not window.isVisible(), timeout=10_000)
    assert engine.stops[0] == "save"
    assert window.studio.settings.value.unfinished == "/runs/demo"


def test_a_failed_run_says_what_and_what_next(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    start(qtbot, window)
    engine_of(qtbot, TrainJob).tell(
        ev.RunFailed("memory.gpu", "The GPU is out of memory", "use a shorter sequence length")
    )
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
    assert "The GPU is out of memory" in window.banner.text
    window.go_to("model")
    assert window.card.start.isVisible()
    assert window.card.start.isEnabled()


def interrupted(home: Path, step: int = 40) -> RunFolder:
    """A run whose engine was killed: it says running, its process is gone, its checkpoint is whole."""
    folder = RunFolder.create(TrainingConfig())
    add_checkpoint(folder, step)
    folder.update(state="running", pid=2**22 + 1, pid_started=1.0, last_step=step, plan={"total_steps": 60})
    return folder


def test_a_run_that_broke_off_is_offered_at_the_next_start(
    qtbot: QtBot, home: Path, make_window: MakeWindow
) -> None:
    folder = interrupted(home)
    window = make_window(loads=True)
    qtbot.waitUntil(lambda: "was interrupted at step 40 of 60" in window.banner.text, timeout=20_000)
    resume = next(b for b in window.banner.findChildren(type(window.card.start)) if b.text() == "Resume")
    qtbot.mouseClick(resume, LEFT)
    engine = engine_of(qtbot, ResumeJob)
    assert engine.job == ResumeJob(str(folder.path))
    assert window.banner.text == ""
    engine.tell(told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        (told.finished(), None),
        (ev.RunStopped("stopped by the user", True, {"step": 7}), None),
        (
            ev.RunFailed("engine.killed", "The engine was ended by the system (SIGKILL)", "resume"),
            "/runs/demo",
        ),
    ],
    ids=["finished", "stopped", "killed"],
)
def test_a_run_is_remembered_until_it_has_ended(
    qtbot: QtBot, make_window: MakeWindow, end: ev.Event, kept: str | None
) -> None:
    window = make_window()
    start(qtbot, window)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.step(7))
    qtbot.waitUntil(lambda: window.studio.settings.value.unfinished == "/runs/demo")
    engine.tell(end)
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
    assert window.studio.settings.value.unfinished == kept


def test_what_an_older_question_says_is_dropped(qtbot: QtBot, make_window: MakeWindow) -> None:
    from app.services.engine_thread import JobRunner, NewestJob
    from tests.app.conftest import ScriptedEngine

    job = NewestJob(JobRunner(ScriptedEngine))
    heard: list[ev.Event] = []
    job.event_arrived.connect(heard.append)
    job.ask(TrainJob({"number": 1}))
    old = engine_of(qtbot, TrainJob)
    job.ask(TrainJob({"number": 2}))
    old.tell(ev.RunFinished({"number": 1}))
    qtbot.waitUntil(lambda: engine_of(qtbot, TrainJob) is not old, timeout=10_000)
    engine_of(qtbot, TrainJob).tell(ev.RunFinished({"number": 2}))
    qtbot.waitUntil(lambda: not job.is_wanted)
    assert heard == [ev.RunFinished({"number": 2})]


def test_a_storm_of_events_does_not_hold_up_the_window(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    start(qtbot, window)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.plan(5000))
    engine.tell(*(told.step(number, 5000) for number in range(1, 5001)))
    longest, last = 0.0, time.perf_counter()

    def all_there() -> bool:
        nonlocal longest, last
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        return len(window.studio.trainer.run.series["loss"]) == 5000

    qtbot.waitUntil(all_there, timeout=30_000)
    assert longest < 2.0
    engine.tell(told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


def test_a_tab_first_seen_during_a_run_says_so(make_window: MakeWindow) -> None:
    window = make_window()
    run = window.studio.trainer.run
    run.begin()
    for event in told.whole_run(5):
        run.fold(event)
    assert "live" not in window.tabs.screens
    window.studio.shown.show_own()
    window.go_to("live")
    assert window.tabs.screens["live"].sentence.text() == "The run is under way"
