"""Keeps an engine ready while nothing else is done, so that the next run or chat need not wait for its imports."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
from PySide6.QtCore import QObject, QTimer

from app.services.background import Background
from app.services.engine_thread import JobRunner
from app.services.settings import SettingsFile
from qlora_engine.spare import Spare

QUIET_MS = 4_000
"""For so long no job has run."""
KEPT_MS = 30 * 60_000
LEAST_AVAILABLE_BYTES = 3 * 1024**3
"""A waiting engine takes about half a GiB; where memory is short it is better used otherwise."""


class ReadyEngine(QObject):
    """Follows `jobs`; one that took the engine leaves room for another once it has ended."""

    def __init__(
        self, spare: Spare, jobs: Sequence[JobRunner], settings: SettingsFile, background: Background
    ) -> None:
        super().__init__()
        self._spare, self._jobs = spare, tuple(jobs)
        self._settings, self._background = settings, background
        self._has_begun = False
        self._quiet = QTimer(self, singleShot=True, interval=QUIET_MS)
        self._quiet.timeout.connect(self._prepare)
        self._kept = QTimer(self, singleShot=True, interval=KEPT_MS)
        self._kept.timeout.connect(self._end)
        for job in self._jobs:
            job.started.connect(self._quiet.stop)
            job.ended.connect(self.look)

    def begin(self) -> None:
        """From now on."""
        self._has_begun = True
        self.look()

    def look(self) -> None:
        """Have one soon, where that is wanted; none where it is not."""
        value = self._settings.value
        if not self._has_begun:
            return
        if value.keeps_ready and value.engine == "process":
            self._quiet.start()
        else:
            self._quiet.stop()
            self._end()

    def close(self) -> None:
        self._quiet.stop()
        self._kept.stop()
        self._spare.end()

    def _prepare(self) -> None:
        if (
            any(job.is_running for job in self._jobs)
            or psutil.virtual_memory().available < LEAST_AVAILABLE_BYTES
        ):
            return
        self._background.submit("engine", self._spare.prepare, lambda _: self._kept.start())

    def _end(self) -> None:
        self._background.submit("engine", self._spare.end, lambda _: None)
