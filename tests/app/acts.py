"""What a person does in the window: starts a run, answers a question."""

from __future__ import annotations

from PySide6.QtCore import Qt, QTimer
from PySide6.QtWidgets import QApplication, QMessageBox
from pytestqt.qtbot import QtBot

from app.window import MainWindow

LEFT = Qt.MouseButton.LeftButton


def answer_with(caption: str) -> QTimer:
    """Presses a button of the next question, as soon as it is open."""
    timer = QTimer(interval=50)

    def look() -> None:
        box = QApplication.activeModalWidget()
        if isinstance(box, QMessageBox) and box.isVisible():
            timer.stop()
            next(b for b in box.buttons() if b.text() == caption).click()

    timer.timeout.connect(look)
    timer.start()
    return timer


def start(qtbot: QtBot, window: MainWindow) -> None:
    qtbot.waitUntil(window.card.start.isEnabled, timeout=10_000)
    qtbot.mouseClick(window.card.start, LEFT)
    qtbot.waitUntil(lambda: window.studio.trainer.run.state == "starting")


def state_of(window: MainWindow) -> str:
    return window.studio.trainer.run.state
