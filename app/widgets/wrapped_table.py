"""A table to read: texts wrap, rows are as high as their texts, and only what changed is painted again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import QRect, Qt, QTimer
from PySide6.QtGui import QFont, QFontMetrics
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget, QTableWidgetItem

from app.widgets.kit import set_tip

WIDEST, LEAST = 220, 60
ACROSS, DOWN = 26, 18
"""Pixels beside and above a cell's text, from the style sheet, and some for rounding."""


@dataclass(frozen=True)
class Cell:
    text: str
    tip: str = ""
    is_strong: bool = False


class WrappedTable(QTableWidget):
    """Nothing in it can be edited."""

    def __init__(self, name: str) -> None:
        super().__init__(0, 0)
        self.setAccessibleName(name)
        self.verticalHeader().hide()
        self.setWordWrap(True)
        self.setTabKeyNavigation(False)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.horizontalHeader().setHighlightSections(False)
        self.horizontalHeader().setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft)
        self.is_whole = False
        """As high as all its rows, whatever their width makes of them: what it stands in scrolls."""
        self._shown: tuple[tuple[Cell, ...], ...] = ()
        self._titles: tuple[str, ...] = ()
        # Every column that is resized tells so; the rows are measured once for all of them.
        self._measure = QTimer(self, singleShot=True, interval=0)
        self._measure.timeout.connect(self._measure_rows)
        self.horizontalHeader().sectionResized.connect(lambda *_: self._measure.start())

    def show_cells(self, titles: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """`rows` have as many cells as there are `titles`."""
        wanted = tuple(tuple(row) for row in rows)
        if tuple(titles) != self._titles or len(wanted) != len(self._shown):
            self._titles, self._shown = tuple(titles), ()
            self.setColumnCount(len(titles))
            self.setHorizontalHeaderLabels(list(titles))
            self.setRowCount(len(wanted))
        for place, row in enumerate(wanted):
            before = self._shown[place] if self._shown else ()
            if row == before:
                continue
            for across, cell in enumerate(row):
                if not before or cell != before[across]:
                    self.setItem(place, across, self._item(cell))
            self.setRowHeight(place, self._height_of(row))
        self._shown = wanted
        self._fit_height()

    def fit_columns(self, stretched: int, widest: int = WIDEST) -> None:
        """Each column as wide as its longest text, up to `widest`, and the column `stretched` as wide as is left."""
        head, metrics = self.horizontalHeader(), QFontMetrics(self._strong)
        for place, title in enumerate(self._titles):
            is_stretched = place == stretched
            mode = QHeaderView.ResizeMode.Stretch if is_stretched else QHeaderView.ResizeMode.Fixed
            head.setSectionResizeMode(place, mode)
            if not is_stretched:
                texts = (title, *(row[place].text for row in self._shown))
                self.setColumnWidth(
                    place, min(widest, max(map(metrics.horizontalAdvance, texts)) + ACROSS + 2)
                )

    @property
    def whole_height(self) -> int:
        """Pixels that all rows take, with the head."""
        return self.horizontalHeader().height() + sum(map(self.rowHeight, range(self.rowCount()))) + 4

    def _measure_rows(self) -> None:
        for place, row in enumerate(self._shown):
            self.setRowHeight(place, self._height_of(row))
        self._fit_height()

    def _fit_height(self) -> None:
        if self.is_whole:
            self.setFixedHeight(max(LEAST, self.whole_height))

    def _height_of(self, row: Sequence[Cell]) -> int:
        """Of the highest cell. Qt's own measure leaves the style sheet's padding out, and cuts the last line."""
        flags = Qt.TextFlag.TextWordWrap | Qt.AlignmentFlag.AlignLeft
        heights = []
        for across, cell in enumerate(row):
            metrics = QFontMetrics(self._strong if cell.is_strong else self.font())
            room = QRect(0, 0, self.columnWidth(across) - ACROSS, 1 << 20)
            heights.append(metrics.boundingRect(room, int(flags), cell.text).height())
        return max(heights, default=0) + DOWN

    def _item(self, cell: Cell) -> QTableWidgetItem:
        item = QTableWidgetItem(cell.text)
        item.setTextAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        set_tip(item, cell.tip or cell.text)
        if cell.is_strong:
            item.setFont(self._strong)
        return item

    @property
    def _strong(self) -> QFont:
        found = QFont(self.font())
        found.setWeight(QFont.Weight.DemiBold)
        return found
