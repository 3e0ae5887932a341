"""This machine's memory as the window sees it, also when nothing runs: sampled in threads, read by a timer."""

from __future__ import annotations

from collections import deque
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from qlora_engine.monitor.sampler import Sampler

HZ = 2.0
KEPT = 1200


class Machine(QObject):
    """Signals: `sampled` in the GUI thread, when `latest` is new."""

    sampled = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._sampler = Sampler(HZ)
        self.latest: dict[str, Any] | None = None
        self.history: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._timer = QTimer(self, interval=int(1000 / HZ))
        self._timer.timeout.connect(self._look)

    def start(self) -> None:
        self._sampler.start()
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()
        self._sampler.stop()

    def _look(self) -> None:
        sample = self._sampler.latest
        if sample is not None and sample is not self.latest:
            self.latest = sample
            self.history.append(sample)
            self.sampled.emit()
