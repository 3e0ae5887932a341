"""The list of runs: its rows follow the draft, this window's run and the folders; its choice is the window's."""

from __future__ import annotations

import time
from collections.abc import Callable

from PySide6.QtCore import QObject

from app.presenters.run_rows import LIVE, RunRow, draft_row, kept_row, own_row, shown_rows
from app.presenters.runcard import short_name
from app.presenters.waiting import ends_of
from app.services.shown_run import BEGINNING, DRAFT
from app.studio import Studio
from app.widgets.run_list import RunList


class RunListController(QObject):
    """`opened` is told when the person chose another run."""

    def __init__(self, studio: Studio, view: RunList, opened: Callable[[], None]) -> None:
        super().__init__(view)
        self._studio, self._view, self._opened = studio, view, opened
        self._kept: tuple[RunRow, ...] = ()
        self._search, self._filter, self._sort = "", "all", "new"
        studio.history.changed.connect(self._read)
        studio.outlook.changed.connect(self._read)
        studio.shown.changed.connect(self.paint)
        studio.trainer.changed.connect(self.paint)
        studio.trainer.state_changed.connect(self.paint)
        studio.workspace.job.changed.connect(self.paint)
        view.chosen.connect(self._choose)
        view.looked_for.connect(self._look)
        self._read()

    def paint(self) -> None:
        self._view.show_rows(
            shown_rows(self._rows(), self._search, self._filter, self._sort), self._studio.shown.keys
        )

    def _rows(self) -> list[RunRow]:
        """The draft first, then this window's run, then the others, the newest first."""
        rows = [draft_row(DRAFT, self._studio.workspace.job.scratch)]
        own = self._own()
        if own is not None:
            rows.append(own)
        rows += [row for row in self._kept if own is None or row.key != own.key]
        return rows

    def _own(self) -> RunRow | None:
        """This window's run while it tells more than its folder: as long as it lives, and until its folder is known."""
        run = self._studio.trainer.run
        key = run.run_dir or BEGINNING
        is_known = self._studio.history.find_in(key) is not None
        if run.state == "idle" or (is_known and run.state not in LIVE):
            return None
        return own_row(key, run, short_name(self._studio.trainer.model))

    def _read(self) -> None:
        ends = ends_of(self._studio.outlook.seen, time.time())
        entries = self._studio.history.entries
        self._kept = tuple(kept_row(entry, ends.get(str(entry.path), "")) for entry in entries)
        self.paint()

    def _look(self, search: str, wanted: str, sort: str) -> None:
        self._search, self._filter, self._sort = search, wanted, sort
        self.paint()

    def _choose(self, keys: tuple[str, ...]) -> None:
        several = tuple(key for key in keys if key not in (DRAFT, BEGINNING))
        wanted = several if len(keys) > 1 and several else keys[:1]
        if wanted != self._studio.shown.keys:
            self._studio.shown.show(*wanted)
            self._opened()
