"""The runs on this disk, read off the GUI thread, with what a person wrote beside them and where they wait."""

from __future__ import annotations

import threading
from pathlib import Path

from PySide6.QtCore import QObject, QTimer, Signal

from app.services.background import Background
from qlora_engine import paths
from qlora_engine.runs import notes
from qlora_engine.runs.index import RunEntry, RunIndex
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.summary import RunSummary, summary_of

LOOK_MS = 3000
"""How often the folders are looked at for what others do: a list of 2,000 runs that did not change takes some 50 ms."""


class History(QObject):
    """Signals: `changed` when `entries` are new."""

    changed = Signal()

    def __init__(self, background: Background) -> None:
        super().__init__()
        self._background = background
        self._folders: set[Path] = set()
        self._index, self._lock = RunIndex(), threading.Lock()
        self.entries: tuple[RunEntry, ...] = ()
        self._by_folder: dict[str, RunEntry] = {}
        self.is_read = False
        self._timer = QTimer(self, interval=LOOK_MS)
        self._timer.timeout.connect(self._look_again)

    @property
    def summaries(self) -> tuple[RunSummary, ...]:
        """Of those that began."""
        return tuple(entry.summary for entry in self.entries if entry.summary.state != "planned")

    def also_look_in(self, runs_dir: str | None) -> None:
        """A runs folder that a job names."""
        if runs_dir:
            self._folders.add(paths.runs_dir(runs_dir))

    def refresh(self) -> None:
        self._background.submit("runs", self._read, self._take)

    def watch(self) -> None:
        """From now on notice by itself what other programs do."""
        self._timer.start()

    def find_in(self, folder: str) -> RunSummary | None:
        """The run that is kept in `folder`."""
        found = self._by_folder.get(folder)
        return found.summary if found is not None else None

    def entry_of(self, folder: str) -> RunEntry | None:
        return self._by_folder.get(folder)

    def expect(self, *folders: Path) -> None:
        """Runs that were made just now are known at once; the next look tells more."""
        found = [RunEntry(summary_of(RunFolder(folder)), notes.read(folder)) for folder in folders]
        self._by_folder.update({str(entry.path): entry for entry in found})
        self.entries = (*found, *self.entries)
        self.changed.emit()
        self.refresh()

    def _look_again(self) -> None:
        if not self._background.is_busy("runs"):
            self.refresh()

    def _read(self) -> tuple[RunEntry, ...]:
        """In a pool thread; the index is used by one at a time."""
        with self._lock:
            return self._index.entries(sorted(self._folders))

    def _take(self, found: tuple[RunEntry, ...]) -> None:
        if self.is_read and found == self.entries:
            return
        self.entries, self.is_read = found, True
        self._by_folder = {str(entry.path): entry for entry in found}
        self.changed.emit()
