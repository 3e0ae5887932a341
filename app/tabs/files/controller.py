"""Files and log of the chosen run, read off the GUI thread when they are looked at."""

from __future__ import annotations

from app.presenters.run_files import RunFiles, files_of
from app.presenters.runs import detail_rows
from app.presenters.words import capital
from app.studio import Studio
from app.tab import TabController
from app.tabs.files.screen import FilesScreen


class FilesController(TabController):
    def __init__(self, studio: Studio, screen: FilesScreen) -> None:
        self._studio, self._screen = studio, screen
        studio.shown.changed.connect(self._changed)
        screen.refresh_asked.connect(self.look)
        self._changed()

    def entered(self, detail: str = "") -> None:
        self._changed()

    def look(self) -> None:
        path, key = self._studio.shown.path, self._studio.shown.key
        if path is None or not path.is_dir():
            self._screen.show_files(None)
            return
        self._studio.background.submit("files", lambda: files_of(path), lambda found: self._take(key, found))

    def _changed(self) -> None:
        shown = self._studio.shown
        summary = shown.summary
        rows = detail_rows(summary) if summary is not None else ()
        warnings = "\n".join(capital(text) for text in summary.notices) if summary is not None else ""
        self._screen.show_run(str(shown.path or ""), rows, warnings)
        if self._screen.isVisible():
            self.look()

    def _take(self, key: str, found: RunFiles) -> None:
        if key == self._studio.shown.key:
            self._screen.show_files(found)
