"""Data tab, Rows: pages of rows as they come into sight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject

from app.presenters.words import capital
from app.tabs.data.chosen_row import ChosenRow
from app.tabs.data.presenters.rows import (
    DATA,
    is_own_file,
    kinds_of,
    position_text,
    sets_of,
)
from app.tabs.data.rows_panel import RowsPanel
from app.tabs.data.screen import ROWS
from qlora_engine.errors import EngineError

if TYPE_CHECKING:
    from app.tabs.data.controller import DataController

FIRST_PAGE = 60


class RowsController(QObject):
    """`rows_of`, `kind` and `search` say which rows are listed; a search is over all of a set."""

    def __init__(self, page: DataController, panel: RowsPanel) -> None:
        super().__init__(panel)
        self._page, self._panel, self._desk = page, panel, page.work.watch.desk
        self.rows_of, self.kind, self.search = DATA, "all", ""
        self._report: Mapping[str, Any] | None = None
        self._wanted_row: int | None = None
        self.chosen = ChosenRow(page, panel)
        self._is_listed = False
        self._error: EngineError | None = None
        panel.set_chosen.connect(lambda rows_of: self._choose(rows_of, "all"))
        panel.kind_chosen.connect(lambda kind: self._choose(self.rows_of, kind))
        panel.search_asked.connect(self._search)
        panel.number_asked.connect(self._to_number)
        panel.step_asked.connect(panel.list.step)
        panel.batch_wanted.connect(lambda _: self._ask_row())
        panel.leave_asked.connect(self.chosen.leave)
        self.chosen.failed.connect(self._take_error)
        panel.check_asked.connect(page.work.watch.check)
        panel.list.range_wanted.connect(self._ask_range)
        panel.list.place_chosen.connect(lambda _: self._ask_row())
        self._desk.changed.connect(self._paint_head)

    def paint(self) -> None:
        """The list begins anew with every new report; a hidden one does not ask."""
        report, settings = self._page.work.data.report, self._page.work.job.config.data
        if self.kind not in dict(kinds_of(self.rows_of, settings)):
            self.kind = "all"
        self._panel.show_choices(sets_of(settings), self.rows_of, kinds_of(self.rows_of, settings), self.kind)
        if report is None:
            if not self.chosen.keeps_list():
                self._report, self._is_listed = None, False
        elif (
            report is not self._report and self._page.screen.isVisible() and self._page.screen.current == ROWS
        ):
            self._report, self._error = report, None
            self._begin()
        self._paint_head()

    def open_row(self, number: int, rows_of: str = DATA) -> None:
        """Show row `number` among all rows of the dataset or of the held-out file."""
        self._wanted_row = number
        if (self.rows_of, self.kind, self.search) == (rows_of, "all", "") and self._is_listed:
            self._go_to_wanted()
        else:
            self._list(rows_of, "all")

    def _to_number(self, number: int) -> None:
        """A share that is held out has no numbers of its own."""
        self.open_row(number, self.rows_of if is_own_file(self._page.work.job.config.data) else DATA)

    @property
    def _can_ask(self) -> bool:
        return self._page.work.data.report is not None or self.chosen.keeps_list()

    # ------------------------------------------------------------ the list

    def _begin(self) -> None:
        self._is_listed = False
        self._panel.list.begin(0)
        self._panel.show_detail(None)
        self._ask_range(0, FIRST_PAGE)

    def _ask_range(self, first: int, count: int) -> None:
        if not self._can_ask:
            return
        which = {"search": self.search} if self.search else {"kind": self.kind}
        self._desk.ask(
            "list",
            {"of": self.rows_of, **which, "first": first, "count": count},
            self._take_list,
            self._take_error,
        )

    def _take_list(self, answer: Mapping[str, Any]) -> None:
        rows, before = self._panel.list, self.chosen.place_before()
        if not self._is_listed:
            self._is_listed, self._error = True, None
            rows.begin(int(answer["total"]))
        rows.take(int(answer["first"]), answer["rows"])
        if self._wanted_row is not None:
            self._go_to_wanted()
        elif rows.place is None and rows.rows.total:
            rows.go_to(min(before, rows.rows.total - 1))
        elif self.chosen.is_unasked:
            self._ask_row()
        self._paint_head()

    def _take_error(self, error: EngineError) -> None:
        self._error = error
        self._paint_head()

    def _go_to_wanted(self) -> None:
        number, self._wanted_row = self._wanted_row, None
        if number is not None:
            self._panel.list.go_to(min(number, self._panel.list.rows.total) - 1)

    def _choose(self, rows_of: str, kind: str) -> None:
        self._wanted_row = None
        self._list(rows_of, kind)

    def _list(self, rows_of: str, kind: str) -> None:
        self.rows_of, self.kind, self.search = rows_of, kind, ""
        self._panel.search.clear()
        self.paint()
        if self._report is not None:
            self._begin()

    def _search(self, text: str) -> None:
        if text != self.search:
            self.search = text
            self._begin()

    def _ask_row(self) -> None:
        if self._can_ask:
            self.chosen.ask(self.rows_of)
            self._paint_head()

    def _paint_head(self) -> None:
        panel, rows = self._panel, self._panel.list
        notice, hint = self._page.notice
        if self._page.is_new:
            notice, hint = "", ""
            if self._error is not None:
                notice, hint = capital(self._error.message), ""
            elif not self._is_listed:
                notice = capital(self._desk.progress) or "Opening the rows"
            elif self.search and not rows.rows.total:
                notice = "No row holds that text."
            elif not rows.rows.total:
                notice = "There are no such rows."
        panel.show_rows(notice, hint, is_ready=self._page.is_new or self.chosen.keeps_list())
        self.chosen.paint(self.rows_of)
        place = rows.place
        panel.position.setText(
            position_text(place, rows.rows.total, self.rows_of, self.kind, self.search)
            if self._is_listed
            else ""
        )
        panel.previous.setEnabled(place is not None and place > 0)
        panel.next.setEnabled(place is not None and place + 1 < rows.rows.total)
