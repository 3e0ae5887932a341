"""A window on a home of its own, with engines that do what the test says."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app import theme
from app.services.collector import Collector
from app.services.settings import SettingsFile
from app.studio import Studio
from app.window import MainWindow
from qlora_engine.control import STOP_SAVE
from qlora_engine.events import TERMINAL, Event, RunLeft, RunStopped
from qlora_engine.jobs import Job


class ScriptedEngine:
    """Gives out the events that the test puts in; notes what it was told."""

    made: list[ScriptedEngine] = []  # noqa: RUF012 - all of one test, cleared by the fixture

    def __init__(self) -> None:
        self.job: Job | None = None
        self.commands: list[Mapping[str, Any]] = []
        self.stops: list[str] = []
        self._events: queue.Queue[Event] = queue.Queue()
        ScriptedEngine.made.append(self)

    def run(self, job: Job) -> Iterator[Event]:
        self.job = job
        while True:
            event = self._events.get(timeout=30)
            yield event
            if isinstance(event, TERMINAL):
                return

    def send(self, command: Mapping[str, Any]) -> None:
        self.commands.append(command)

    def request_stop(self, mode: str = STOP_SAVE) -> None:
        self.stops.append(mode)
        self.tell(RunStopped("stopped by the user", mode == STOP_SAVE, {"step": 7}))

    def leave(self) -> None:
        self.stops.append("leave")
        self.tell(RunLeft("/runs/demo"))

    def tell(self, *events: Event) -> None:
        for event in events:
            self._events.put(event)


def has_engine(kind: type[Job]) -> bool:
    """True once an engine was given such a job."""
    return any(isinstance(engine.job, kind) for engine in ScriptedEngine.made)


def engine_of(qtbot: QtBot, kind: type[Job]) -> ScriptedEngine:
    """The newest engine that was given such a job; waits for the engine's thread to begin."""
    qtbot.waitUntil(lambda: has_engine(kind), timeout=10_000)
    return next(engine for engine in reversed(ScriptedEngine.made) if isinstance(engine.job, kind))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub" / "hub"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def qapp(qapp: QApplication) -> Iterator[QApplication]:
    theme.load_fonts()
    theme.apply(qapp, "dark")
    collector = Collector()
    yield qapp
    collector.stop()


MakeWindow = Callable[..., MainWindow]


@pytest.fixture
def make_window(qtbot: QtBot) -> Iterator[MakeWindow]:
    """Makes windows whose engines are scripted; all are ended after the test."""
    ScriptedEngine.made.clear()
    studios: list[Studio] = []

    def make(*, loads: bool = False, **settings: Any) -> MainWindow:
        file = SettingsFile()
        if settings:
            file.change(**settings)
        studio = Studio(file, ScriptedEngine)
        studios.append(studio)
        window = MainWindow(studio)
        qtbot.addWidget(window, before_close_func=lambda closing: closing.closing.ask_no_more())
        window.resize(1380, 880)  # wide enough for the run card
        window.show()
        if loads:
            window.load()
        else:
            studio.workspace.load()
            qtbot.waitUntil(lambda: studio.workspace.memory.own is not None, timeout=20_000)
        return window

    yield make
    for studio in studios:
        studio.close()
