"""Data tab, Rows: pages of rows as they come into sight, and the chosen one in full."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject

from app.presenters.words import capital
from app.tabs.data.presenters.rows import (
    DATA,
    batch_rows,
    is_own_file,
    kinds_of,
    position_text,
    row_detail,
    sets_of,
)
from app.tabs.data.rows_panel import RowsPanel
from app.tabs.data.screen import ROWS
from qlora_engine.errors import EngineError

if TYPE_CHECKING:
    from app.tabs.data.controller import DataController

FIRST_PAGE = 60
IN_BATCH = 4


class RowsController(QObject):
    """`rows_of`, `kind` and `search` say which rows are listed; a search is over all of a set."""

    def __init__(self, page: DataController, panel: RowsPanel) -> None:
        super().__init__(panel)
        self._page, self._panel, self._desk = page, panel, page.work.watch.desk
        self.rows_of, self.kind, self.search = DATA, "all", ""
        self._report: Mapping[str, Any] | None = None
        self._wanted_row: int | None = None
        self._unasked: int | None = None
        """The chosen place, while its row cannot be asked for because its number is not known yet."""
        self._is_listed = False
        self._error: EngineError | None = None
        panel.set_chosen.connect(lambda rows_of: self._choose(rows_of, "all"))
        panel.kind_chosen.connect(lambda kind: self._choose(self.rows_of, kind))
        panel.search_asked.connect(self._search)
        panel.number_asked.connect(self._to_number)
        panel.step_asked.connect(self._step)
        panel.batch_wanted.connect(lambda _: self._ask_row())
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

    # ------------------------------------------------------------ the list

    def _begin(self) -> None:
        self._is_listed = False
        self._panel.list.begin(0)
        self._panel.show_detail(None)
        self._ask_range(0, FIRST_PAGE)

    def _ask_range(self, first: int, count: int) -> None:
        if self._page.work.data.report is None:
            return
        which = {"search": self.search} if self.search else {"kind": self.kind}
        self._desk.ask(
            "list",
            {"of": self.rows_of, **which, "first": first, "count": count},
            self._take_list,
            self._take_error,
        )

    def _take_list(self, answer: Mapping[str, Any]) -> None:
        rows = self._panel.list
        if not self._is_listed:
            self._is_listed, self._error = True, None
            rows.begin(int(answer["total"]))
        rows.take(int(answer["first"]), answer["rows"])
        if self._wanted_row is not None:
            self._go_to_wanted()
        elif rows.place is None and rows.rows.total:
            rows.go_to(0)
        elif rows.place is not None and rows.place == self._unasked:
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

    def _step(self, by: int) -> None:
        place = self._panel.list.place
        self._panel.list.go_to(0 if place is None else place + by)

    # ------------------------------------------------------------ the chosen row

    def _ask_row(self) -> None:
        place = self._panel.list.place
        if place is None or self._page.work.data.report is None:
            return
        number = self._panel.list.rows.number(place)
        self._unasked = place if number is None else None
        if number is not None:
            self._desk.ask("row", {"of": self.rows_of, "number": number}, self._take_row, self._take_error)
            if self._panel.batch.isChecked():
                model = self._panel.list.rows
                numbers = [n for p in range(place, place + IN_BATCH) if (n := model.number(p)) is not None]
                self._desk.ask(
                    "batch", {"of": self.rows_of, "numbers": numbers}, self._take_batch, self._take_error
                )
        self._paint_head()

    def _take_row(self, answer: Mapping[str, Any]) -> None:
        self._panel.show_detail(row_detail(answer))

    def _take_batch(self, answer: Mapping[str, Any]) -> None:
        self._panel.show_tokens(batch_rows(answer), is_batch=True)

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
        panel.show_rows(notice, hint, is_ready=self._page.is_new)
        place = rows.place
        panel.position.setText(
            position_text(place, rows.rows.total, self.rows_of, self.kind, self.search)
            if self._is_listed
            else ""
        )
        panel.previous.setEnabled(place is not None and place > 0)
        panel.next.setEnabled(place is not None and place + 1 < rows.rows.total)
