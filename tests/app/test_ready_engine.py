"""An engine waits while nothing else is done, where that is wanted, and goes again."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from PySide6.QtCore import QObject, Signal

from app.services import ready_engine
from app.services.background import Background
from app.services.ready_engine import ReadyEngine
from app.services.settings import SettingsFile


class Job(QObject):
    started, ended = Signal(), Signal(object)
    is_running = False

    def turn(self, is_running: bool) -> None:
        self.is_running = is_running
        self.started.emit() if is_running else self.ended.emit(None)


class Kept:
    """In place of a spare."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def prepare(self) -> None:
        self.heard.append("prepare")

    def end(self) -> None:
        self.heard.append("end")


@pytest.fixture
def made(qtbot: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(ready_engine, "QUIET_MS", 30)
    monkeypatch.setattr(ready_engine, "KEPT_MS", 200)
    background, spare, job = Background(), Kept(), Job()
    settings = SettingsFile(tmp_path / "window.json")
    ready = ReadyEngine(spare, (job,), settings, background)  # type: ignore[arg-type]
    yield SimpleNamespace(ready=ready, spare=spare, job=job, settings=settings, qtbot=qtbot)
    ready.close()
    background.close()


def test_it_is_prepared_when_nothing_has_run_for_a_while_and_goes_unused(made: Any) -> None:
    made.job.turn(False)
    made.qtbot.wait(80)
    assert made.spare.heard == [], "not before it has begun"
    made.job.turn(True)
    made.ready.begin()
    made.qtbot.wait(80)
    assert made.spare.heard == [], "not beside a job"
    made.job.turn(False)
    made.qtbot.waitUntil(lambda: made.spare.heard == ["prepare"])
    made.qtbot.waitUntil(lambda: made.spare.heard == ["prepare", "end"])


def test_none_where_it_is_not_wanted(made: Any) -> None:
    made.settings.change(keeps_ready=False)
    made.ready.begin()
    made.qtbot.wait(80)
    assert "prepare" not in made.spare.heard
    made.settings.change(keeps_ready=True, engine="inline")
    made.ready.look()
    made.qtbot.wait(80)
    assert "prepare" not in made.spare.heard


def test_none_where_memory_is_short(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready_engine.psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * 1024**3))
    made.ready.begin()
    made.qtbot.wait(80)
    assert made.spare.heard == []
