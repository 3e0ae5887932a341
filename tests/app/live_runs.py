"""A window that trains, for tests."""

from __future__ import annotations

from PySide6.QtCore import Qt
from pytestqt.qtbot import QtBot

from app.window import MainWindow
from qlora_engine.jobs import TrainJob
from tests.app import events_of_a_run as told
from tests.app.acts import start
from tests.app.conftest import ScriptedEngine, engine_of

LEFT = Qt.MouseButton.LeftButton


def training(qtbot: QtBot, window: MainWindow) -> ScriptedEngine:
    start(qtbot, window)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.plan(), told.step(7))
    qtbot.waitUntil(lambda: window.studio.trainer.run.last_step is not None)
    return engine
