"""All rows of a dataset in a list that reads them as they come into sight: a million rows are never in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, Qt, QTimer, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableView

from app.presenters.words import count_text
from app.tabs.data.presenters.rows import TITLES, row_cells
from app.widgets.kit import as_written

AROUND = 40
"""Rows read beyond those in sight."""
KEPT = 4000
Index = QModelIndex | QPersistentModelIndex


class RowModel(QAbstractTableModel):
    """`rows` are kept by their place in the list."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._cells: dict[int, tuple[str, ...]] = {}
        self._numbers: dict[int, int] = {}

    def begin(self, total: int) -> None:
        """Another list, of which nothing is known yet."""
        self.beginResetModel()
        self.total = total
        self._cells, self._numbers = {}, {}
        self.endResetModel()

    def take(self, first: int, rows: Sequence[Mapping[str, Any]]) -> None:
        if len(self._cells) > KEPT:
            self._cells, self._numbers = {}, {}
        for place, found in enumerate(rows, first):
            self._cells[place] = row_cells(found)
            self._numbers[place] = int(found["row"])
        if rows:
            self.dataChanged.emit(self.index(first, 0), self.index(first + len(rows) - 1, len(TITLES) - 1))

    def number(self, place: int) -> int | None:
        return self._numbers.get(place)

    def missing(self, first: int, last: int) -> bool:
        return any(place not in self._cells for place in range(max(0, first), min(last + 1, self.total)))

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008 - Qt's own default
        return 0 if parent.isValid() else self.total

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008 - Qt's own default
        return 0 if parent.isValid() else len(TITLES)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if role not in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.ToolTipRole):
            return None
        cells = self._cells.get(index.row())
        text = cells[index.column()] if cells else "\u2026"
        return as_written(text) if role == Qt.ItemDataRole.ToolTipRole else text

    def headerData(
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> Any:
        if orientation == Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return TITLES[section]
        return None


class RowList(QTableView):
    """Signals: `range_wanted(first, count)` when rows in sight are not known; `place_chosen(place)`."""

    range_wanted = Signal(int, int)
    place_chosen = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self.rows = RowModel()
        self.setModel(self.rows)
        self.setAccessibleName("Rows of the data")
        self.verticalHeader().hide()
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.verticalHeader().setDefaultSectionSize(30)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setTabKeyNavigation(False)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setMinimumHeight(96)
        header = self.horizontalHeader()
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft)
        header.setTextElideMode(Qt.TextElideMode.ElideRight)
        header.setStretchLastSection(True)
        header.setHighlightSections(False)
        self._look = QTimer(self, singleShot=True, interval=30)
        self._look.timeout.connect(self._want)
        self.verticalScrollBar().valueChanged.connect(lambda *_: self._look.start())
        self.selectionModel().currentRowChanged.connect(self._chosen)

    def _chosen(self, now: QModelIndex, _: QModelIndex) -> None:
        if now.isValid():
            self.place_chosen.emit(now.row())

    def begin(self, total: int) -> None:
        self.rows.begin(total)
        self._look.start()

    def take(self, first: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows.take(first, rows)
        self._look.start()

    def go_to(self, place: int) -> None:
        """Choose a row of the list and bring it into sight."""
        if 0 <= place < self.rows.total:
            self.selectRow(place)
            self.scrollTo(self.rows.index(place, 0), QAbstractItemView.ScrollHint.EnsureVisible)

    def step(self, by: int) -> None:
        self.go_to(0 if self.place is None else self.place + by)

    @property
    def place(self) -> int | None:
        index = self.currentIndex()
        return index.row() if index.isValid() else None

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        metrics = self.fontMetrics()
        room, widest = self.viewport().width(), count_text(1_000_000)
        wide = [metrics.horizontalAdvance(text) + 24 for text in (widest, "", widest, widest)]
        wide[1] = max(metrics.horizontalAdvance(TITLES[1]) + 24, room // 4)
        for place, found in enumerate(wide):
            self.setColumnWidth(place, found)
        self._look.start()

    def _want(self) -> None:
        if not self.rows.total:
            return
        first = max(0, self.rowAt(0))
        last = self.rowAt(self.viewport().height() - 1)
        last = last if last >= 0 else min(self.rows.total - 1, first + 60)
        if self.rows.missing(first, last):
            start = max(0, first - AROUND)
            self.range_wanted.emit(start, last + AROUND - start)
