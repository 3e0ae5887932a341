"""The queue and its estimated ends, looked at off the GUI thread whenever runs change, and from time to time."""

from __future__ import annotations

import time
from collections.abc import Sequence

from PySide6.QtCore import QObject, QTimer, Signal

from app.presenters.waiting import Outlook, outlook
from app.services.background import Background
from app.services.history import History
from qlora_engine.runs import outlook as engine
from qlora_engine.runs import queue
from qlora_engine.runs.index import RunEntry

LOOK_MS = 15_000
"""For what time alone changes: what others do is seen by the list of runs first."""


class QueueOutlook(QObject):
    """Signals: `changed` when `seen` is another one, which it is once a minute at most while nobody does anything."""

    changed = Signal()

    def __init__(self, history: History, background: Background) -> None:
        super().__init__()
        self._history, self._background = history, background
        self.seen = Outlook()
        self._timer = QTimer(self, interval=LOOK_MS)
        self._timer.timeout.connect(self._look_again)
        history.changed.connect(self.look)

    def watch(self) -> None:
        """From now on notice by itself what time and other programs do."""
        self._timer.start()

    def look(self) -> None:
        entries = self._history.entries
        self._background.submit("outlook", lambda: _seen(entries), self._take)

    def _look_again(self) -> None:
        if not self._background.is_busy("outlook"):
            self.look()

    def _take(self, found: Outlook) -> None:
        if found != self.seen:
            self.seen = found
            self.changed.emit()


def _seen(entries: Sequence[RunEntry]) -> Outlook:
    """For a pool thread: the past of a model is read, and the driver asked for its GPUs."""
    now, found = time.time(), queue.read()
    return outlook(found, engine.forecast(found, entries, now), now)
