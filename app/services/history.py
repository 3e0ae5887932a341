"""The runs on this disk, read off the GUI thread."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QObject, Signal

from app.services.background import Background
from qlora_engine import paths
from qlora_engine.runs.record import RunFolder, RunSummary, list_runs


class History(QObject):
    """Signals: `changed` when `summaries` is new."""

    changed = Signal()

    def __init__(self, background: Background) -> None:
        super().__init__()
        self._background = background
        self._folders: set[Path] = set()
        self.summaries: tuple[RunSummary, ...] = ()
        self._by_folder: dict[str, RunSummary] = {}
        self.is_read = False

    def also_look_in(self, runs_dir: str | None) -> None:
        """A runs folder that a job names."""
        if runs_dir:
            self._folders.add(paths.runs_dir(runs_dir))

    def refresh(self) -> None:
        folders = (paths.runs_dir(), *sorted(self._folders))
        self._background.submit("runs", lambda: _read(folders), self._take)

    def find_in(self, folder: str) -> RunSummary | None:
        """The run that is kept in `folder`."""
        return self._by_folder.get(folder)

    def delete(self, summary: RunSummary) -> None:
        """Remove a run's folder for good."""
        self._background.submit(
            "delete", RunFolder(summary.path).delete, lambda _: self.refresh(), lambda _: self.refresh()
        )

    def _take(self, found: tuple[RunSummary, ...]) -> None:
        self.summaries, self.is_read = found, True
        self._by_folder = {str(summary.path): summary for summary in found}
        self.changed.emit()


def _read(folders: tuple[Path, ...]) -> tuple[RunSummary, ...]:
    found = {summary.path: summary for folder in folders for summary in list_runs(folder)}
    return tuple(sorted(found.values(), key=lambda s: s.created_unix or 0.0, reverse=True))
