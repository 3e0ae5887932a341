"""Calls from any thread into the GUI thread, without any Qt in the other thread.

A signal whose sender is a Python class, emitted in another thread, looks its class up in a table of Shiboken without
holding Python's lock, while the GUI thread may be adding to that table (the first use of any Qt class does): a rare
crash at address zero in `PySide::MetaObjectBuilder::update`. So what other threads say lies in a queue, and a timer
looks at it while somebody is expected to speak. For the same reason no thread but the GUI's may be the first to
import a module with Qt classes in it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from PySide6.QtCore import QObject, QTimer

LOOK_MS = 15
QUIET_LOOKS, QUIET_MS = 20, 60
"""After so many looks that found nothing there are fewer: each takes a little of a training processor."""
AT_ONCE_SECONDS = 0.005
"""How long the event loop is held up by one look; the rest follows in the next turn."""


class GuiCalls(QObject):
    """Lives in the GUI thread; `post` may be called from any."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._calls: deque[tuple[Callable[[], None], bool]] = deque()
        self._speakers = self._quiet = 0
        self._timer = QTimer(self, interval=LOOK_MS)
        self._timer.timeout.connect(self._look)

    def expect(self) -> None:
        """Another thread begins that will post, and say which of its calls `is_last`."""
        self._speakers += 1
        self._timer.start(LOOK_MS)

    def post(self, call: Callable[[], None], *, is_last: bool) -> None:
        """Call it in the GUI thread soon, after what was posted before."""
        self._calls.append((call, is_last))

    def close(self) -> None:
        """Call nothing any more."""
        self._timer.stop()
        self._calls.clear()
        self._speakers = 0

    def _look(self) -> None:
        until = time.monotonic() + AT_ONCE_SECONDS
        self._quiet = 0 if self._calls else self._quiet + 1
        while self._calls:
            call, is_last = self._calls.popleft()
            self._speakers -= is_last
            call()
            if time.monotonic() > until:
                break
        if self._calls:
            self._timer.start(0)
        elif self._speakers:
            self._timer.start(LOOK_MS if self._quiet < QUIET_LOOKS else QUIET_MS)
        else:
            self._timer.stop()
