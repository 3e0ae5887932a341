"""Keeps the keyboard somewhere: what had it may have been deleted, and then nothing would answer a key."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QObject, Qt, QTimer
from PySide6.QtWidgets import QApplication, QWidget


class FocusKeeper(QObject):
    """When nothing of `window` has the focus any more, `fallback` names what gets it."""

    def __init__(self, window: QWidget, fallback: Callable[[], QWidget | None]) -> None:
        super().__init__(window)
        self._window, self._fallback = window, fallback
        self._soon = QTimer(self, singleShot=True, interval=0)
        self._soon.timeout.connect(self._restore)
        app = QApplication.instance()
        if isinstance(app, QApplication):
            app.focusChanged.connect(self._changed)

    def _changed(self, _old: QWidget | None, new: QWidget | None) -> None:
        if new is None:
            self._soon.start()

    def _restore(self) -> None:
        has_focus = QApplication.focusWidget() is not None or QApplication.activePopupWidget() is not None
        if self._window.isActiveWindow() and not has_focus:
            found = self._fallback()
            if found is not None:
                found.setFocus(Qt.FocusReason.OtherFocusReason)
