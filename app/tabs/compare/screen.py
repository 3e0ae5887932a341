"""Compare: one chart of all curves, a legend that hides and shows them, and two tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QCheckBox, QHeaderView, QSlider, QVBoxLayout

from app.tabs.compare.presenter import AXES, WHAT, Experiment, Line, View
from app.tabs.compare.rows_panel import RowsPanel
from app.theme import GAP, GAP_WIDE
from app.widgets.form import QuietCombo
from app.widgets.kit import Card, Elided, Segments, boxed, button, column, emptied, label, row
from app.widgets.page import Page
from app.widgets.wrapped_table import Cell, WrappedTable

if TYPE_CHECKING:
    from app.widgets.compare_chart import CompareChart

LEGEND_WIDTH = 230
SMOOTHEST = 98
"""Hundredths of the smoothing's weight."""
MARGIN = (
    "\u00b1 is what chance alone moves: the 95\u00a0% interval over the seeds, each compared with the same seed of the first cell. "
    "What lies within it is no measurable difference."
)


class CompareScreen(Page):
    """Signals: `looked(View)` when it is to be drawn otherwise, `save_asked(kind)`."""

    looked = Signal(object)
    save_asked = Signal(str)

    def __init__(self) -> None:
        super().__init__("Compare", "Curves over each other, and only what differs")
        for kind, words in (
            ("png", "Save picture\u2026"),
            ("svg", "Save drawing\u2026"),
            ("csv", "Save numbers\u2026"),
        ):
            self.buttons.addWidget(
                button(words, partial(self.save_asked.emit, kind), tip=f"Save as {kind.upper()}")
            )
        self.chart: CompareChart | None = None
        self._values: list[tuple[QCheckBox, Elided]] = []
        self._experiments: Sequence[Experiment] = ()
        self._make_controls()
        card = self._chart_card()
        self.experiments = QVBoxLayout()
        self.experiments.setSpacing(GAP_WIDE)
        self.content.addLayout(self.experiments)
        self.content.addWidget(card, 1)
        self.differences, self.figures = WrappedTable("What differs"), WrappedTable("What the runs came to")
        self.same = label("Nothing differs but what chance did.", "quiet", wraps=True)
        self.content.addWidget(Card("What differs").add(self.same, self.differences))
        self.content.addWidget(Card("What they came to").add(self.figures))
        self.rows = RowsPanel()
        self.content.addWidget(self.rows)

    def _make_controls(self) -> None:
        self.axis = Segments(AXES)
        self.axis.set_value("step")
        self.what = QuietCombo()
        self.what.setAccessibleName("Which curve")
        for name, words in WHAT:
            self.what.addItem(words, name)
        self.smoothing = QSlider(Qt.Orientation.Horizontal)
        self.smoothing.setAccessibleName("Smoothing")
        self.smoothing.setRange(0, SMOOTHEST)
        self.smoothing.setValue(60)
        self.smoothing.setFixedWidth(110)
        self.log, self.clip = QCheckBox("Log scale"), QCheckBox("Cut outliers")
        self.axis.chosen.connect(self._look)
        self.what.activated.connect(self._look)
        self.smoothing.valueChanged.connect(self._look)
        for box in (self.log, self.clip):
            box.toggled.connect(self._look)

    def _chart_card(self) -> Card:
        self.legend_place = QVBoxLayout()
        self.legend_place.setSpacing(2)
        self.chart_place = QVBoxLayout()
        self.waiting = label("The curves are being read.", "quiet")
        self.chart_place.addWidget(self.waiting)
        above = row(self.what, self.axis, None, gap=GAP_WIDE)
        tools = row(label("Smoothing", "small"), self.smoothing, self.log, self.clip, None, gap=GAP)
        card = Card(margin=12).add(above, tools)
        legend = boxed(self.legend_place)
        legend.setFixedWidth(LEGEND_WIDTH)
        beside = row(boxed(self.chart_place), column(legend, None), gap=GAP_WIDE)
        beside.setStretch(0, 1)
        card.body.addLayout(beside, 1)
        card.setMinimumHeight(380)
        return card

    @property
    def view(self) -> View:
        return View(
            self.axis.value, self.what.currentData(), self.smoothing.value() / 100, self.log.isChecked(), self.clip.isChecked()
        )  # fmt: skip

    def set_chart(self, chart: CompareChart) -> None:
        self.waiting.hide()
        self.chart = chart
        self.chart_place.addWidget(chart, 1)
        chart.read.connect(self._show_values)

    def show_legend(self, lines: Sequence[Line]) -> None:
        """A check box a run, and after it what the crosshair reads."""
        titles = [line.title for line in lines]
        if [box.accessibleName() for box, _ in self._values] == titles:
            return
        emptied(self.legend_place)
        self._values = []
        for place, line in enumerate(lines):
            box, value = QCheckBox(), Elided("", "small")
            name = Elided(line.title, mode=Qt.TextElideMode.ElideMiddle)
            box.setAccessibleName(line.title)
            box.setChecked(True)
            box.toggled.connect(partial(self._toggle, place))
            sign = label("\u25cf" if line.is_dots else "\u2501\u2501", "strong")
            sign.setStyleSheet(f"color: {line.colour}")
            found = row(box, sign, name)
            found.setStretch(2, 1)
            self.legend_place.addWidget(boxed(column(found, value, gap=0)))
            self._values.append((box, value))

    def show_tables(self, heads: Sequence[str], differences: Sequence[Sequence[str]], figures: Sequence[Sequence[str]]) -> None:  # fmt: skip
        self.same.setVisible(not differences)
        self.differences.setVisible(bool(differences))
        for table, first, rows in (
            (self.differences, "Setting", differences),
            (self.figures, "Figure", figures),
        ):
            _show_whole(table, (first, *heads), rows)

    def show_experiments(self, found: Sequence[Experiment]) -> None:
        """A table each, with the margin of every cell to the first."""
        if found == self._experiments:
            return
        self._experiments = found
        emptied(self.experiments)
        for one in found:
            table = WrappedTable(f"Experiment: {one.name}")
            self.experiments.addWidget(
                Card(f"Experiment: {one.name}").add(label(MARGIN, "small", wraps=True), table)
            )
            _show_whole(table, one.heads, one.rows)

    def _toggle(self, place: int, is_shown: bool) -> None:
        if self.chart is not None:
            self.chart.show_line(place, is_shown)

    def _show_values(self, texts: Sequence[str]) -> None:
        for place, (_, value) in enumerate(self._values):
            value.setText(texts[place] if place < len(texts) else "")

    def _look(self, *_: object) -> None:
        self.looked.emit(self.view)


def _show_whole(table: WrappedTable, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table.is_whole = True
    table.show_cells(heads, [[Cell(text) for text in cells] for cells in rows])
    table.horizontalHeader().setMinimumSectionSize(110)
    table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
