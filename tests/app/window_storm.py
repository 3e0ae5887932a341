"""Random clicks, keys, drops, wheels and resizes over a window with a live run of the stand-in engine.

`make test-window` storms for thousands of acts; the suite for some hundred (`tests/app/test_storm.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QTimer, QUrl
from PySide6.QtGui import QDropEvent, QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QDialog, QWidget

from app.window import MainWindow

KEYS = (
    Qt.Key.Key_Tab, Qt.Key.Key_Return, Qt.Key.Key_Escape, Qt.Key.Key_Space, Qt.Key.Key_Down, Qt.Key.Key_Up, Qt.Key.Key_Delete,
    Qt.Key.Key_F1, Qt.Key.Key_F2, Qt.Key.Key_K, Qt.Key.Key_N, Qt.Key.Key_P, Qt.Key.Key_T, Qt.Key.Key_1, Qt.Key.Key_5, Qt.Key.Key_6,
    Qt.Key.Key_7, Qt.Key.Key_9, Qt.Key.Key_A, Qt.Key.Key_Z,
)  # fmt: skip
MODIFIERS = (
    Qt.KeyboardModifier.NoModifier,
    Qt.KeyboardModifier.ControlModifier,
    Qt.KeyboardModifier.ShiftModifier,
)
SIZES = ((1024, 680), (1199, 700), (1200, 700), (1366, 768), (1920, 1080), (960, 600))


class Storm:
    """`seed` repeats it. Questions and dialogs that open are given up after a moment, so that nothing is deleted or closed."""

    def __init__(self, window: MainWindow, seed: int) -> None:
        self.window, self.chance = window, random.Random(seed)
        self.done: list[str] = []
        self._leave = QTimer(window, interval=5)
        self._leave.timeout.connect(self._leave_questions)
        self._leave.start()

    def rage(self, acts: int, between: Callable[[], None]) -> None:
        choices = (
            self._click,
            self._click,
            self._click,
            self._key,
            self._key,
            self._wheel,
            self._drop,
            self._resize,
        )
        for number in range(acts):
            act = self.chance.choice(choices)
            self.done.append(act.__name__)
            act()
            if number % 5 == 0:
                between()
            QApplication.processEvents()
        self._leave.stop()

    def _target(self) -> tuple[QWidget, QPoint]:
        place = QPoint(
            self.chance.randrange(self.window.width()), self.chance.randrange(self.window.height())
        )
        found = self.window.childAt(place) or self.window
        return found, found.mapFrom(self.window, place)

    def _click(self) -> None:
        target, place = self._target()
        button = Qt.MouseButton.LeftButton
        keys = self.chance.choice((*MODIFIERS, MODIFIERS[0], MODIFIERS[0]))
        if self.chance.random() < 0.1:
            QTest.mouseDClick(target, button, keys, place)
        else:
            QTest.mouseClick(target, button, keys, place)

    def _key(self) -> None:
        target = QApplication.focusWidget() or self.window
        QTest.keyClick(target, self.chance.choice(KEYS), self.chance.choice(MODIFIERS))

    def _wheel(self) -> None:
        target, place = self._target()
        turn = QPoint(0, self.chance.choice((-120, 120)))
        at = QPointF(place)
        none = Qt.MouseButton.NoButton
        event = QWheelEvent(at, at, QPoint(), turn, none, self.chance.choice(MODIFIERS), Qt.ScrollPhase.NoScrollPhase, False)  # fmt: skip
        QApplication.sendEvent(target, event)

    def _drop(self) -> None:
        target, place = self._target()
        data = QMimeData()
        data.setUrls([QUrl.fromLocalFile("/no/such/rows.jsonl")])
        action = Qt.DropAction.CopyAction
        QApplication.sendEvent(
            target, QDropEvent(QPointF(place), action, data, Qt.MouseButton.LeftButton, MODIFIERS[0])
        )

    def _resize(self) -> None:
        self.window.resize(*self.chance.choice(SIZES))

    def _leave_questions(self) -> None:
        """Escape: nothing is lost by it. The window itself stays in front."""
        for found in (QApplication.activePopupWidget(), QApplication.activeModalWidget()):
            if isinstance(found, QDialog):
                found.reject()
            elif found is not None:
                found.close()
