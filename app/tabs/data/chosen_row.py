"""Data tab, Rows: the chosen row, shown in full, left out of the run or taken back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject, Signal

from app.tabs.data.findings import check_if_possible
from app.tabs.data.presenters.rows import batch_rows, leave_out_with, leave_text, row_detail
from app.tabs.data.rows_panel import RowsPanel
from qlora_engine.config import DataSettings

if TYPE_CHECKING:
    from app.tabs.data.controller import DataController

IN_BATCH = 4


class ChosenRow(QObject):
    """Signals: `failed(EngineError)`."""

    failed = Signal(object)

    def __init__(self, page: DataController, panel: RowsPanel) -> None:
        super().__init__(panel)
        self._page, self._panel, self._desk = page, panel, page.work.watch.desk
        self._unasked: int | None = None
        """The chosen place, while its row cannot be asked for because its number is not known yet."""
        self._left: tuple[DataSettings, int | None] | None = None
        """The data, but for what is left out of them, and the place of the row that was left out or taken back last."""

    @property
    def number(self) -> int | None:
        place = self._panel.list.place
        return None if place is None else self._panel.list.rows.number(place)

    @property
    def is_unasked(self) -> bool:
        return self._unasked is not None and self._panel.list.place == self._unasked

    def ask(self, rows_of: str) -> None:
        place, number = self._panel.list.place, self.number
        self._unasked = place if number is None else None
        if place is None or number is None:
            return
        self._desk.ask("row", {"of": rows_of, "number": number}, self._take_row, self.failed.emit)
        if self._panel.batch.isChecked():
            model = self._panel.list.rows
            numbers = [n for p in range(place, place + IN_BATCH) if (n := model.number(p)) is not None]
            ask = {"of": rows_of, "numbers": numbers}
            self._desk.ask("batch", ask, self._take_batch, self.failed.emit)

    def _take_row(self, answer: Mapping[str, Any]) -> None:
        self._panel.show_detail(row_detail(answer))

    def _take_batch(self, answer: Mapping[str, Any]) -> None:
        self._panel.show_tokens(batch_rows(answer), is_batch=True)

    # ------------------------------------------------------------ left out

    def paint(self, rows_of: str) -> None:
        self._panel.show_leave(leave_text(self.number, rows_of, self._page.work.job.config.data))

    def leave(self) -> None:
        """Leave the row out, or take it back; the data are read anew."""
        number, job = self.number, self._page.work.job
        if number is not None:
            settings = job.config.data
            self._left = (replace(settings, leave_out=""), self._panel.list.place)
            job.edit("data.leave_out", leave_out_with(number, settings))
            check_if_possible(self._page)

    def keeps_list(self) -> bool:
        """Whether the list may stay while the data are read anew: nothing but rows left out here has changed."""
        now = replace(self._page.work.job.config.data, leave_out="")
        if self._left is not None and self._left[0] != now:
            self._left = None
        return self._left is not None

    def place_before(self) -> int:
        """Where the list was before a row was left out; it is known no more once the data have been read anew."""
        place = self._left[1] if self._left else None
        if self._page.is_new:
            self._left = None
        return place or 0
