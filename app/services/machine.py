"""This machine's memory as the window sees it, also when nothing runs: sampled in threads, read by a timer."""

from __future__ import annotations

from collections import deque
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from qlora_engine.monitor.sampler import Sampler

HZ, LOOK_MS = 4.0, 500
HOST_HZ, HOST_LOOK_MS = 1.0, 1000
"""Where there is no GPU: the memory of the host moves slowly, and its processors have other things to do."""
KEPT = 2400
"""Ten minutes of them at the least: whoever draws them keeps more."""


class Machine(QObject):
    """Signals: `sampled` in the GUI thread, when `latest` is new; `fresh` then holds every sample since the signal
    before, so that none is lost however late the GUI thread is."""

    sampled = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._taken: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._sampler = Sampler(HZ, on_sample=self._taken.append)
        self.latest: dict[str, Any] | None = None
        self.fresh: tuple[dict[str, Any], ...] = ()
        self.history: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._timer = QTimer(self, interval=LOOK_MS)
        self._timer.timeout.connect(self._look)

    def start(self) -> None:
        self._sampler.start()
        self._timer.start()

    def set_gpu(self, has_gpu: bool) -> None:
        """Whether a GPU is there to be watched."""
        self._sampler.set_rate(HZ if has_gpu else HOST_HZ)
        self._timer.setInterval(LOOK_MS if has_gpu else HOST_LOOK_MS)

    def stop(self) -> None:
        self._timer.stop()
        self._sampler.stop()

    def _look(self) -> None:
        found = []
        while self._taken:
            found.append(self._taken.popleft())
        if found:
            self.fresh, self.latest = tuple(found), found[-1]
            self.history.extend(found)
            self.sampled.emit()
