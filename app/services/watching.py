"""Follows a run that another process trains: its events as its folder tells them, read off the GUI thread."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QObject, QTimer, Signal

from app.services.background import Background
from qlora_engine.events import Event
from qlora_engine.runs.watch import Watch

LOOK_MS = 400


class Watching(QObject):
    """Signals: `came(path, events)`: what was told since the last look, the first time everything."""

    came = Signal(str, object)

    def __init__(self, background: Background) -> None:
        super().__init__()
        self._background = background
        self._watch: Watch | None = None
        self._path: Path | None = None
        self._timer = QTimer(self, interval=LOOK_MS)
        self._timer.timeout.connect(self._look)

    def follow(self, path: Path | None) -> None:
        """This run and no other; None: none."""
        if path == self._path:
            return
        self._path, self._watch = path, None
        if path is None:
            self._timer.stop()
        else:
            self._timer.start()
            self._look()

    def _look(self) -> None:
        path, known = self._path, self._watch
        if path is None or self._background.is_busy("watch"):
            return

        def look() -> tuple[Watch, list[Event]]:
            watch = known or Watch(path)
            return watch, watch.new()

        self._background.submit(
            "watch", look, lambda found: self._take(path, *found), lambda _: self.follow(None)
        )

    def _take(self, path: Path, watch: Watch, told: list[Event]) -> None:
        if path != self._path:
            return
        self._watch = watch
        if watch.end is not None:
            self.follow(None)
        if told:
            self.came.emit(str(path), told)
