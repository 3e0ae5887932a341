"""A sentence about some rows, with their numbers as links that open them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QWidget

from app.presenters.words import count_text
from app.tabs.data.presenters.report import RowsLine
from app.widgets.kit import boxed, button, column, emptied, label, row


class RowLinks(QWidget):
    """Signals: `row_asked(number)`."""

    row_asked = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self._lines = column(gap=4)
        self.setLayout(self._lines)
        self._shown: tuple[RowsLine, ...] | None = None

    def show_lines(self, lines: Sequence[RowsLine]) -> None:
        if tuple(lines) == self._shown:
            return
        self._shown = tuple(lines)
        emptied(self._lines)
        for line in lines:
            self._lines.addWidget(self._line(line))

    def _line(self, line: RowsLine) -> QWidget:
        text = label(line.text, wraps=True, selectable=True)
        if not line.rows:
            return text
        return boxed(column(text, row(*links(line.rows, self.row_asked.emit), None), gap=0))


def links(rows: Sequence[int], open_row: Callable[[int], object]) -> list[QWidget]:
    """A link for each row."""
    found: list[QWidget] = [label("Row" if len(rows) == 1 else "Rows", "small")]
    for number in rows:
        link = button(count_text(number), partial(open_row, number), "link")
        link.setAccessibleName(f"Open row {count_text(number)}")
        found.append(link)
    return found
