"""Short lists beside the memory bars: advice with buttons, other peaks, costs. Their widgets are kept and written anew,
for a dragged slider repaints every few milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QGridLayout, QVBoxLayout, QWidget

from app.presenters.memory import AdviceLine, MomentLine
from app.presenters.memory_sizes import Cost
from app.theme import GAP, GAP_WIDE
from app.widgets.kit import button, column, label, row, set_role


class _Advice(QWidget):
    applied = Signal(str, object)

    def __init__(self) -> None:
        super().__init__()
        self._line: AdviceLine | None = None
        self.text, self.saves = label(wraps=True), label(role="quiet")
        self.apply = button("Apply", self._tell)
        found = row(self.text, self.saves, self.apply)
        found.setStretch(0, 1)
        self.setLayout(found)

    def show_line(self, line: AdviceLine) -> None:
        self._line = line
        self.text.setText(line.text)
        self.saves.setText(line.saves_text)
        self.apply.setAccessibleName(f"Apply: {line.text}")

    def _tell(self) -> None:
        if self._line is not None:
            self.applied.emit(self._line.path, self._line.value)


class AdviceList(QWidget):
    """Signals: `applied(path, value)`."""

    applied = Signal(str, object)

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[_Advice] = []
        self._none = label("Nothing here would save more.", "quiet")
        self._box = QVBoxLayout(self)
        self._box.setContentsMargins(0, 0, 0, 0)
        self._box.setSpacing(6)
        self._box.addWidget(self._none)

    def show_lines(self, lines: Sequence[AdviceLine]) -> None:
        while len(self.rows) < len(lines):
            found = _Advice()
            found.applied.connect(self.applied)
            self._box.addWidget(found)
            self.rows.append(found)
        for index, one in enumerate(self.rows):
            if index < len(lines):
                one.show_line(lines[index])
            one.setVisible(index < len(lines))
        self._none.setVisible(not lines)


class MomentTable(QWidget):
    """Name, bytes and a word of warning for each moment."""

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(GAP_WIDE)
        self._grid.setVerticalSpacing(6)
        self._grid.setColumnStretch(2, 1)
        self._cells: list[tuple[Any, Any, Any]] = []

    def show_lines(self, lines: Sequence[MomentLine]) -> None:
        while len(self._cells) < len(lines):
            cells = (label(role="quiet"), label(), label(role="small"))
            for place, cell in enumerate(cells):
                self._grid.addWidget(cell, len(self._cells), place)
            self._cells.append(cells)
        for index, (title, size, note) in enumerate(self._cells):
            is_used = index < len(lines)
            for cell in (title, size, note):
                cell.setVisible(is_used)
            if is_used:
                found = lines[index]
                title.setText(found.title)
                size.setText(found.bytes_text)
                note.setText(found.note)
                set_role(note, tone=found.tone)


class _Cost(QWidget):
    def __init__(self) -> None:
        super().__init__()
        self.title, self.bytes_, self.text = label(wraps=True), label(role="strong"), label(role="small", wraps=True)  # fmt: skip
        top = row(self.title, self.bytes_)
        top.setStretch(0, 1)
        self.setLayout(column(top, self.text, gap=1))

    def show_cost(self, cost: Cost) -> None:
        self.title.setText(cost.title)
        self.bytes_.setText(cost.bytes_text)
        self.text.setText(cost.text)


class CostList(QWidget):
    """What many calculators leave out."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[_Cost] = []
        self._box = QVBoxLayout(self)
        self._box.setContentsMargins(0, 0, 0, 0)
        self._box.setSpacing(GAP)

    def show_costs(self, costs: Sequence[Cost]) -> None:
        while len(self._rows) < len(costs):
            self._rows.append(_Cost())
            self._box.addWidget(self._rows[-1])
        for index, one in enumerate(self._rows):
            if index < len(costs):
                one.show_cost(costs[index])
            one.setVisible(index < len(costs))
