"""What a run's folder tells of it: read once where it is over, followed while another program trains it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QObject, Signal

from app.presenters.run_fold import RunFold
from app.services.background import Background
from app.services.trainer import history_of
from app.services.watching import Watching
from qlora_engine.events import TERMINAL, Event
from qlora_engine.runs.record import RunFolder

ELSEWHERE = "elsewhere"


class KeptRun(QObject):
    """`fold` is empty until the folder was read. Signals: `told` when it has more; `ended` when a run that was followed did."""

    told = Signal()
    ended = Signal()

    def __init__(self, background: Background) -> None:
        super().__init__()
        self._background = background
        self.fold = RunFold()
        self._path: Path | None = None
        self._state = ""
        self._looked: tuple[str, int] = ("", -1)
        self._stopping: set[Path] = set()
        """Runs of others that were asked to stop, and have not ended yet."""
        self._watching = Watching(background)
        self._watching.came.connect(self._hear)

    def look(self, path: Path | None, state: str) -> None:
        """At this run, which stands so; None: at none. An unchanged folder is not read again."""
        if path != self._path:
            self.fold, self._looked = RunFold(), ("", -1)
        is_elsewhere = path is not None and state == ELSEWHERE
        if is_elsewhere and (path != self._path or state != self._state):
            self.fold, self._looked = RunFold(), ("", -1)
        if path != self._path or state != self._state:
            self.fold.status.stand(state)
        self._path, self._state = path, state
        if path is not None and not is_elsewhere:
            self._stopping.discard(path)
        self._mark_stopping()
        self._watching.follow(path if is_elsewhere else None)
        if path is not None and not is_elsewhere:
            self._read(path)

    def asked_to_stop(self, path: Path) -> None:
        """Its engine was told so; until it has ended, it is shown as stopping."""
        self._stopping.add(path)
        self._mark_stopping()
        self.told.emit()

    def _mark_stopping(self) -> None:
        if self._path in self._stopping and self._state == ELSEWHERE:
            self.fold.asked_to_stop()

    def _read(self, path: Path) -> None:
        metrics = RunFolder(path).metrics_path
        wanted = (str(path), metrics.stat().st_size if metrics.exists() else 0)
        if wanted != self._looked:
            self._looked = wanted
            self._background.submit("shown", lambda: history_of(path), lambda found: self._take(path, found))

    def _take(self, path: Path, found: RunFold) -> None:
        if path == self._path and self._state != ELSEWHERE:
            self.fold = found
            found.status.stand(self._state)
            self.told.emit()

    def _hear(self, path: str, told: Sequence[Event]) -> None:
        """The first time everything since it began."""
        if path != str(self._path):
            return
        for event in told:
            self.fold.fold(event)
        is_over = isinstance(told[-1], TERMINAL)
        if not is_over:
            self._mark_stopping()
        self.told.emit()
        if is_over:
            self.ended.emit()
