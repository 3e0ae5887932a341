"""Calls from any thread into the GUI thread, without any Qt in the other thread.

A signal whose sender is a Python class, emitted in another thread, looks its class up in a table of Shiboken without
holding Python's lock, while the GUI thread may be adding to that table (the first use of any Qt class does): a rare
crash at address zero in `PySide::MetaObjectBuilder::update`. So what other threads say lies in a queue, and a byte in
a socket wakes the GUI thread, which takes no turns while nobody speaks. For the same reason no thread but the GUI's may
be the first to import a module with Qt classes in it.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from PySide6.QtCore import QObject, QSocketNotifier, QTimer

AT_ONCE_SECONDS = 0.005
"""How long the event loop is held up by one look; the rest follows in the next turn."""


class GuiCalls(QObject):
    """Lives in the GUI thread; `post` may be called from any."""

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._calls: deque[Callable[[], None]] = deque()
        self._woken, self._wakes = socket.socketpair()
        for end in (self._woken, self._wakes):
            end.setblocking(False)
        self._notifier = QSocketNotifier(self._woken.fileno(), QSocketNotifier.Type.Read, self)
        self._notifier.activated.connect(self._wake)
        self._rest = QTimer(self, singleShot=True, interval=0)
        self._rest.timeout.connect(self._look)
        self.destroyed.connect(partial(_close, self._woken, self._wakes))

    def post(self, call: Callable[[], None]) -> None:
        """Call it in the GUI thread soon, after what was posted before."""
        self._calls.append(call)
        with contextlib.suppress(OSError):  # full: it is about to look anyway; closed: nobody hears any more
            self._wakes.send(b"\0")

    def close(self) -> None:
        """Call nothing any more."""
        self._notifier.setEnabled(False)
        self._rest.stop()
        self._calls.clear()
        _close(self._woken, self._wakes)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        self._look()

    def _look(self) -> None:
        """What follows a call is heard soon even if that call fails, or opens a dialog with an event loop of its own."""
        until = time.monotonic() + AT_ONCE_SECONDS
        while self._calls:
            call = self._calls.popleft()
            if self._calls:
                self._rest.start()
            call()
            if time.monotonic() > until:
                return
        self._rest.stop()


def _close(*ends: socket.socket) -> None:
    for end in ends:
        end.close()
