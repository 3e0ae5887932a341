"""The Model page's panel on what 4 bits cost: one button, then sentences, a table, the picture and the worst layers."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QGridLayout, QLabel, QWidget

from app.presenters.quality import HEADER_TIPS, HEADERS, QualityState, TableRow, WorstLine
from app.theme import GAP_WIDE
from app.widgets.kit import Card, Elided, Notice, boxed, button, column, label, line, row, set_role, set_tip
from app.widgets.quality_chart import QualityChart
from app.widgets.share_bar import ShareBar

RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter


class QualityPanel(Card):
    """Signals: `measure_asked`, `stop_asked`."""

    measure_asked = Signal()
    stop_asked = Signal()

    def __init__(self) -> None:
        super().__init__("What 4 bits cost on this model")
        self.measure = button("Measure what 4 bits cost", self.measure_asked.emit)
        self.stop = button("Stop", self.stop_asked.emit)
        self.hint = label(role="small", wraps=True)
        self.progress_text, self.progress = Elided(role="small"), ShareBar()
        self.running = boxed(row(boxed(column(self.progress_text, self.progress, gap=4)), self.stop))
        self.problem = Notice()
        self.verdict, self.more = (
            label(role="strong", wraps=True, selectable=True),
            label(wraps=True, selectable=True),
        )
        self.warning = Notice()
        self.table, self.blocks = _Table(), label(role="small", wraps=True)
        self.chart = QualityChart()
        self.worst = _WorstList()
        self.measured = label(role="small", wraps=True)
        self.found = boxed(
            column(
                self.verdict, self.warning, self.table, self.blocks, line(), label("Layer by layer: error as a share of a typical weight", "strong"), self.chart, self.worst, line(),
                self.more, self.measured,
            )
        )  # fmt: skip
        self.add(self.hint, row(self.measure, None), self.running, self.problem, self.found)

    def show_state(self, state: QualityState) -> None:
        self.measure.setText(state.button_text)
        self.measure.setAccessibleName(state.button_text)
        self.measure.setEnabled(state.can_measure)
        self.measure.setVisible(not state.is_running)
        self.hint.setText(state.hint)
        self.hint.setVisible(bool(state.hint))
        self.running.setVisible(state.is_running)
        self.progress_text.setText(state.running_text)
        self.progress.show_share(state.running_share)
        self.problem.say(state.problem, state.problem_hint, "bad")
        self.found.setVisible(bool(state.verdict))
        self.verdict.setText(state.verdict)
        self.warning.say(state.warning, tone="warning")
        self.more.setText(state.more)
        self.table.show_rows(state.rows)
        self.blocks.setText(state.blocks)
        self.blocks.setVisible(bool(state.blocks))
        self.chart.show_picture(state.picture)
        self.worst.show_lines(state.worst)
        self.measured.setText(state.measured_text)


class _Table(QWidget):
    """One line per way to store the weights; numbers stand under their headers."""

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(12)
        self._grid.setVerticalSpacing(5)
        self._grid.setColumnStretch(0, 1)
        self._cells: list[list[QLabel]] = []
        for place, (text, tip) in enumerate(zip(HEADERS, HEADER_TIPS, strict=True)):
            found = label(text, "small")
            set_tip(found, tip)
            if place:
                found.setAlignment(RIGHT)
            self._grid.addWidget(found, 0, place)
        self._grid.addWidget(line(), 1, 0, 1, len(HEADERS))

    def show_rows(self, rows: Sequence[TableRow]) -> None:
        while len(self._cells) < len(rows):
            cells: list[QLabel] = [Elided()] + [label(selectable=True) for _ in HEADERS[1:]]
            for place, cell in enumerate(cells):
                if place:
                    cell.setAlignment(RIGHT)
                self._grid.addWidget(cell, 2 + len(self._cells), place)
            self._cells.append(cells)
        for index, cells in enumerate(self._cells):
            for place, cell in enumerate(cells):
                cell.setVisible(index < len(rows))
                if index < len(rows):
                    cell.setText(rows[index].cells[place])
                    set_role(cell, role="strong" if rows[index].is_own else "")


class _WorstList(QWidget):
    """The worst layers, numbered as the picture's rings are."""

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(GAP_WIDE)
        self._grid.setVerticalSpacing(4)
        self._grid.setColumnStretch(1, 2)
        self._grid.setColumnStretch(2, 3)
        self._lines: list[tuple[QLabel, QLabel, QLabel]] = []

    def show_lines(self, lines: Sequence[WorstLine]) -> None:
        while len(self._lines) < len(lines):
            cells: tuple[QLabel, QLabel, QLabel] = (
                label(role="strong"),
                Elided(mode=Qt.TextElideMode.ElideLeft),
                Elided(role="quiet"),
            )
            for place, cell in enumerate(cells):
                self._grid.addWidget(cell, len(self._lines), place)
            self._lines.append(cells)
        for index, cells in enumerate(self._lines):
            for cell in cells:
                cell.setVisible(index < len(lines))
            if index < len(lines):
                found = lines[index]
                for cell, text in zip(cells, (str(found.rank), found.module, found.text), strict=True):
                    cell.setText(text)
