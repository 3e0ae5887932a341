"""The parts of the memory, one line each; a line opens to its formula, its numbers and its source."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QIcon, QPainter, QPixmap
from PySide6.QtWidgets import QGridLayout, QLabel, QPushButton, QWidget

from app import theme
from app.presenters.memory import PartLine, TotalLine
from app.widgets.kit import Elided, button, label, line

NUMBERS_WIDTH = 84


class _Line:
    """The widgets of one part, in one row of the grid and the row below it."""

    def __init__(self, grid: QGridLayout, place: int, owner: PartList) -> None:
        self.shown: PartLine | None = None
        self.title: QPushButton = button("", None, "link")
        self.title.setCheckable(True)
        self.title.setIconSize(QSize(12, 12))
        self.title.toggled.connect(self.open)
        self.bytes_, self.other = label(role="strong"), label(role="quiet")
        for number in (self.bytes_, self.other):
            number.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            number.setMinimumWidth(NUMBERS_WIDTH)
        self.changed_by = Elided(role="quiet")
        self.detail = label(role="small", wraps=True, selectable=True)
        self.detail.setContentsMargins(18, 0, 0, 8)
        self.detail.hide()
        for column, widget in enumerate((self.title, self.bytes_, self.other, self.changed_by)):
            grid.addWidget(widget, place, column)
        grid.addWidget(self.detail, place + 1, 0, 1, 4)

    def open(self, is_open: bool) -> None:
        self.detail.setVisible(is_open)

    def show(self, part: PartLine) -> None:
        if part == self.shown:
            return
        if self.shown is None or self.shown.name != part.name:
            self.title.setIcon(swatch(part.name))
        self.shown = part
        self.title.setText(part.title)
        self.title.setAccessibleName(f"{part.title}: {part.bytes_text}. Show how it is computed")
        self.bytes_.setText(part.bytes_text)
        self.other.setText(part.other_text)
        self.changed_by.setText(part.changed_by)
        numbers = f"\nWith {part.numbers}." if part.numbers else ""
        self.detail.setText(f"How: {part.formula}.{numbers}\nFrom: {part.source}.")


class PartList(QWidget):
    """`show_parts` paints; a click on a name opens its line, `open_part` does so for a click elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(theme.GAP_WIDE)
        self._grid.setVerticalSpacing(3)
        self._grid.setColumnStretch(3, 1)
        self._chosen, self._other = label(role="small"), label(role="small")
        for column, found in enumerate(
            (label("Part", "small"), self._chosen, self._other, label("What changes it", "small"))
        ):
            is_number = column in (1, 2)
            self._grid.addWidget(
                found, 0, column, Qt.AlignmentFlag.AlignRight if is_number else Qt.AlignmentFlag.AlignLeft
            )
        self._grid.addWidget(line(), 1, 0, 1, 4)
        self.lines: dict[str, _Line] = {}
        self._totals: list[tuple[QLabel, ...]] = []
        self._rule = line()

    def show_parts(
        self, parts: Sequence[PartLine], totals: Sequence[TotalLine], chosen: str, other: str
    ) -> None:
        self._chosen.setText(chosen)
        self._other.setText(other)
        for part in parts:
            if part.name not in self.lines:
                self.lines[part.name] = _Line(self._grid, 2 + 2 * len(self.lines), self)
            self.lines[part.name].show(part)
        self._show_totals(totals)

    def open_part(self, name: str) -> QWidget | None:
        """Open that part's line; the widget to bring into view."""
        found = self.lines.get(name)
        if found is None:
            return None
        found.title.setChecked(True)
        return found.detail

    def restyle(self) -> None:
        for name, found in self.lines.items():
            found.title.setIcon(swatch(name))

    def _show_totals(self, totals: Sequence[TotalLine]) -> None:
        first = 100
        if totals and not self._totals:
            self._grid.addWidget(self._rule, first - 1, 0, 1, 4)
        while len(self._totals) < len(totals):
            cells: tuple[QLabel, ...] = (
                label(role="strong"),
                label(role="strong"),
                label(role="quiet"),
                Elided(role="quiet"),
            )
            for column, cell in enumerate(cells):
                cell.setAlignment(
                    Qt.AlignmentFlag.AlignVCenter
                    | (Qt.AlignmentFlag.AlignRight if column in (1, 2) else Qt.AlignmentFlag.AlignLeft)
                )
                self._grid.addWidget(cell, first + len(self._totals), column)
            self._totals.append(cells)
        for index, cells in enumerate(self._totals):
            for cell in cells:
                cell.setVisible(index < len(totals))
            if index < len(totals):
                total = totals[index]
                texts = (total.title, total.bytes_text, total.other_text, total.note)
                for cell, text in zip(cells, texts, strict=True):
                    cell.setText(text)


def swatch(name: str) -> QIcon:
    """The part's colour as an icon."""
    pixmap = QPixmap(QSize(24, 24))
    pixmap.fill(theme.part_colour(name))
    if name in theme.HATCHED_PARTS:
        painter = QPainter(pixmap)
        painter.fillRect(pixmap.rect(), Qt.BrushStyle.BDiagPattern)
        painter.end()
    return QIcon(pixmap)
