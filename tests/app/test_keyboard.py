"""A day's work by the keyboard alone: nothing here clicks, and no widget is told anything but keys."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractButton, QApplication, QPlainTextEdit, QSlider, QWidget
from pytestqt.qtbot import QtBot

from app.window import MainWindow
from qlora_engine import events as ev
from qlora_engine.jobs import ChatJob, ExportJob, TrainJob
from tests.app import events_of_a_run as told
from tests.app.conftest import MakeWindow, ScriptedEngine, engine_of
from tests.app.window_states import make_runs

KEY, CTRL, SHIFT = Qt.Key, Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier
PLAIN = Qt.KeyboardModifier.NoModifier
OTHER = "llama-7b"
LONGEST_WAY = 120
"""Presses of Tab until a control is given up; no tab has as many controls."""


class Hands:
    """On a keyboard. Keys go to what has the focus, as those of the desktop do."""

    def __init__(self, window: MainWindow) -> None:
        self.window = window

    @property
    def at(self) -> QWidget:
        over = QApplication.activePopupWidget()
        if over is not None:
            return over.focusWidget() or over
        return QApplication.focusWidget() or self.window

    def press(self, key: Qt.Key, modifier: Qt.KeyboardModifier = PLAIN, times: int = 1) -> None:
        for _ in range(times):
            QTest.keyClick(self.at, key, modifier)
            QApplication.processEvents()

    def type(self, text: str) -> None:
        QTest.keyClicks(self.at, text)

    def find(self, words: str) -> None:
        """By the palette."""
        self.press(KEY.Key_K, CTRL)
        self.type(words)
        self.press(KEY.Key_Return)

    def tab_to(self, name: str, kind: type[QWidget]) -> QWidget:
        """By Tab, to a control by the name that is read out."""
        passed = []
        for _ in range(LONGEST_WAY):
            found = self.at
            words = found.text() if isinstance(found, QAbstractButton) else ""
            if isinstance(found, kind) and name in (found.accessibleName().split(":")[0], words):
                return found
            passed.append(f"{type(found).__name__} {found.accessibleName() or words}")
            self.press(KEY.Key_Tab)
        pytest.fail(f"Tab never comes to {name}; it passes {list(dict.fromkeys(passed))}")


@pytest.fixture
def hands(qtbot: QtBot, make_window: MakeWindow) -> Hands:
    make_runs()
    window = make_window(loads=True)
    window.activateWindow()
    qtbot.waitUntil(window.card.start.isEnabled, timeout=20_000)
    window.studio.workspace.job.edit("model.name", OTHER)  # of yesterday
    qtbot.waitUntil(lambda: QApplication.focusWidget() is not None)
    return Hands(window)


def until(qtbot: QtBot, what: Callable[[], object]) -> None:
    qtbot.waitUntil(lambda: bool(what()), timeout=10_000)


def test_a_day_by_the_keyboard_alone(qtbot: QtBot, hands: Hands) -> None:
    window = hands.window
    set_up(qtbot, hands)
    train(qtbot, hands)
    compare(qtbot, hands)
    hands.find("first-look")
    until(qtbot, lambda: window.studio.shown.state == "finished")
    chat(qtbot, hands)
    export(qtbot, hands)


def set_up(qtbot: QtBot, hands: Hands) -> None:
    """Pick a model, look at the rows, ask what a higher rank takes."""
    window, job = hands.window, hands.window.studio.workspace.job
    hands.press(KEY.Key_1, CTRL)
    assert window.tabs.current == "model"
    hands.tab_to("Models on this computer", QWidget)
    hands.press(KEY.Key_Home)
    hands.press(KEY.Key_Return)
    until(qtbot, lambda: job.config.model.name != OTHER)
    until(qtbot, lambda: window.studio.workspace.memory.own is not None)
    hands.press(KEY.Key_2, CTRL)
    assert window.tabs.current == "data"
    hands.tab_to("Source", QAbstractButton)
    hands.press(KEY.Key_Right)
    until(qtbot, lambda: window.tabs.screens["data"].stack.currentIndex() > 0)
    hands.press(KEY.Key_4, CTRL)
    assert window.tabs.current == "memory"
    rank = job.config.lora.rank
    hands.tab_to("Rank", QSlider)
    hands.press(KEY.Key_Right)
    until(qtbot, lambda: job.config.lora.rank > rank)


def train(qtbot: QtBot, hands: Hands) -> None:
    """Start, pause, go on, to the end."""
    run = hands.window.studio.trainer
    until(qtbot, hands.window.card.start.isEnabled)
    hands.press(KEY.Key_Return, CTRL)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(*told.whole_run(20))
    until(qtbot, lambda: run.run.step == 20)
    hands.press(KEY.Key_P, CTRL)
    until(qtbot, lambda: said(engine) == ["pause"])
    engine.tell(ev.Paused(20))
    until(qtbot, lambda: run.run.state == "paused")
    hands.press(KEY.Key_P, CTRL)
    until(qtbot, lambda: said(engine) == ["pause", "continue"])
    engine.tell(told.finished())
    until(qtbot, lambda: not run.is_running)


def compare(qtbot: QtBot, hands: Hands) -> None:
    """The last two of the list."""
    hands.press(KEY.Key_L, CTRL)
    hands.press(KEY.Key_End)
    hands.press(KEY.Key_Up, SHIFT)
    assert len(hands.window.studio.shown.keys) == 2
    assert hands.window.tabs.current == "compare"


def chat(qtbot: QtBot, hands: Hands) -> None:
    """Load the model, ask, read."""
    hands.find("chat")
    assert hands.window.tabs.current == "chat"
    hands.tab_to("Load", QAbstractButton)
    hands.press(KEY.Key_Space)
    engine = engine_of(qtbot, ChatJob)
    engine.tell(ev.SessionReady({"sides": ["base", "tuned"]}))
    panel = hands.window.tabs.screens["chat"].chat
    until(qtbot, panel.send.isEnabled)
    hands.tab_to("Your message", QPlainTextEdit)
    hands.type("Hello")
    hands.press(KEY.Key_Return)
    until(qtbot, lambda: [c.get("sides") for c in engine.commands] == [["base"], ["tuned"]])
    engine.tell(
        ev.AnswerFinished(1, "base", "Hi", 1, 0.2, True), ev.AnswerFinished(1, "tuned", "Yo", 1, 0.2, True)
    )
    until(qtbot, lambda: "Yo" in panel.columns.text.toPlainText())


def export(qtbot: QtBot, hands: Hands) -> None:
    """As it is proposed."""
    hands.find("export")
    assert hands.window.tabs.current == "export"
    hands.tab_to("Prove it", QAbstractButton)
    hands.tab_to("Export", QAbstractButton)  # the heading of the tab, which is called the same
    hands.press(KEY.Key_Tab)
    hands.tab_to("Export", QAbstractButton)
    assert hands.at is hands.window.tabs.screens["export"].export
    hands.press(KEY.Key_Space)
    assert isinstance(engine_of(qtbot, ExportJob).job, ExportJob)


def said(engine: ScriptedEngine) -> list[object]:
    return [next(iter(command.values()), None) for command in engine.commands]
