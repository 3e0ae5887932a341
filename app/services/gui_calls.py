"""Calls from any thread into the GUI thread.

A signal whose sender is a Python class, emitted in another thread, looks its class up in a table of Shiboken without
holding Python's lock, while the GUI thread may be adding to that table (the first use of any Qt class does): a rare
crash at address zero in `PySide::MetaObjectBuilder::update`. Posting an event looks nothing up. For the same reason
no thread but the GUI's may be the first to import a module with Qt classes in it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable

from PySide6.QtCore import QCoreApplication, QEvent, QObject

CALL = QEvent.Type(QEvent.registerEventType())


class GuiCalls(QObject):
    """Made in the GUI thread; ends with its parent, and calls nothing afterwards."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._calls: deque[Callable[[], None]] = deque()

    def post(self, call: Callable[[], None]) -> None:
        """Call it in the GUI thread soon, after what was posted before. From any thread."""
        self._calls.append(call)
        with contextlib.suppress(RuntimeError):  # the window may be gone
            QCoreApplication.postEvent(self, QEvent(CALL))

    def event(self, event: QEvent) -> bool:
        if event.type() != CALL:
            return super().event(event)
        self._calls.popleft()()
        return True
