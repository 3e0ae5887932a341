"""Collects garbage in the GUI thread only.

Python collects cycles in whatever thread happens to allocate; a cycle with a widget in it, freed in the engine's or
the sampler's thread, is destroyed there by Qt, which ends the process. So automatic collection is off, for good, and
a timer does it here.
"""

from __future__ import annotations

import gc

from PySide6.QtCore import QObject, QTimer

LOOK_MS = 500


class Collector(QObject):
    """Takes over from the moment it is made until `stop`."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._thresholds = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.disable()
        self._timer = QTimer(self, interval=LOOK_MS)
        self._timer.timeout.connect(self.look)
        self._timer.start()

    def look(self) -> None:
        """Collect the oldest generation whose count is over Python's own threshold."""
        counts = gc.get_count()
        for generation in (2, 1, 0):
            if counts[generation] > self._thresholds[generation]:
                gc.collect(generation)
                return

    def stop(self) -> None:
        """The process is about to end: automatic collection stays off, for it would begin in the middle of a Qt
        object's destruction and wait for ever for a lock that this very thread holds."""
        self._timer.stop()
        gc.collect()
