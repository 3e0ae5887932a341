"""Hands on a keyboard: keys go to the window that has the focus, as the desktop sends them, and to no widget of our choice."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication, QWindow
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QAbstractButton, QApplication, QWidget

KEY, CTRL, SHIFT = Qt.Key, Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier
PLAIN = Qt.KeyboardModifier.NoModifier
LONGEST_WAY = 120
"""Presses of Tab until a control is given up; no tab has as many controls."""


class Hands:
    """Raises AssertionError where a key would go nowhere, or Tab does not come to what is wanted."""

    @property
    def at(self) -> QWidget:
        """What the next key goes to."""
        over = QApplication.activePopupWidget()
        found = QApplication.focusWidget() if over is None else over.focusWidget() or over
        assert found is not None, "nothing has the focus, so no key is answered"
        return found

    def press(self, key: Qt.Key, modifier: Qt.KeyboardModifier = PLAIN, times: int = 1) -> None:
        for _ in range(times):
            QTest.keyClick(_window(), key, modifier)
            QApplication.processEvents()

    def type(self, text: str) -> None:
        for sign in text:
            QTest.keyClick(_window(), sign)  # type: ignore[call-overload] # a character, which the stubs do not know
        QApplication.processEvents()

    def find(self, words: str) -> None:
        """By the palette."""
        self.press(KEY.Key_K, CTRL)
        self.type(words)
        self.press(KEY.Key_Return)

    def tab_to(
        self,
        name: str,
        kind: type[QWidget] = QWidget,
        fits: Callable[[QWidget], bool] = lambda _: True,
        key: Qt.Key = KEY.Key_Tab,
    ) -> QWidget:
        """By Tab, to a control by the name that is read out."""
        passed = []
        for _ in range(LONGEST_WAY):
            found = self.at
            words = found.text() if isinstance(found, QAbstractButton) else ""
            if (
                isinstance(found, kind)
                and name in (found.accessibleName().split(":")[0], words)
                and fits(found)
            ):
                return found
            passed.append(f"{type(found).__name__} {found.accessibleName() or words}")
            self.press(key)
        raise AssertionError(f"Tab never comes to {name}; it passes {list(dict.fromkeys(passed))}")


def _window() -> QWindow:
    found = QGuiApplication.focusWindow()
    assert found is not None, "no window has the focus"
    return found
