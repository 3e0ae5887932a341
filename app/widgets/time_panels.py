"""Cards around the charts over time: a stacked picture with its legend, and a small chart with its newest value."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QGridLayout, QLabel, QSizePolicy, QWidget

from app import theme
from app.presenters import numerals
from app.presenters.memory_series import TITLES, MemoryFeed, Picture
from app.presenters.run_marks import Mark
from app.presenters.small_charts import SmallChart, SmallReading
from app.presenters.words import GIB, gib_figure, gib_text
from app.widgets.colours import legible, swatch
from app.widgets.kit import Card, Elided, column, label, markup, row, set_tip
from app.widgets.time_axis import TimeAxis
from app.widgets.time_chart import TimeChart
from app.widgets.time_layers import Layer
from app.widgets.time_scale import time_text
from qlora_engine.monitor.parts import MEASURED
from qlora_engine.monitor.residency import ACCOUNTED, ESTIMATED

ABOUT = "\u2248 "
KINDS = {
    MEASURED: "Measured",
    ACCOUNTED: "Accounted: the sum of what the engine allocated",
    ESTIMATED: "Estimated, so hatched: from the difference of other figures",
}
LEGEND_WIDTH = 232
MARGIN = 10


class StackPanel(Card):
    """A picture's bands with a legend that tells the newest figures, or those under the crosshair."""

    def __init__(self, axis: TimeAxis, accessible_name: str, rows: int = 2) -> None:
        """`rows`: lines of legend that always have their place. A panel that grows moves and repaints every chart of the
        page at once, which takes the window a tenth of a second."""
        super().__init__(margin=MARGIN)
        self._axis = axis
        self.title, self.reading = label("", "strong"), Elided("", "small")
        self.reading.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self.chart = TimeChart(axis, accessible_name=accessible_name, unit="GiB")
        self.note = Elided("", "small")
        self._level_name, self._level_text = label("", "small"), label("", "small")
        self._legend = QGridLayout()
        self._legend.setContentsMargins(0, 0, 0, 0)
        self._legend.setVerticalSpacing(1)
        self._legend.setColumnStretch(0, 1)
        self._legend.addWidget(self._level_name, 0, 0)
        self._legend.addWidget(self._level_text, 0, 1, Qt.AlignmentFlag.AlignRight)
        self._names: tuple[tuple[str, bool], ...] = ()
        self._lines: dict[str, tuple[QLabel, QLabel]] = {}
        self._parts: dict[str, tuple[QLabel, QLabel]] = {}
        self._picture = Picture("", ())
        side = QWidget()
        side.setFixedWidth(LEGEND_WIDTH)
        side.setMinimumHeight(rows * (self.note.fontMetrics().height() + 2))
        for each in (self.note, self._level_name):
            keep_place(each)
        side.setLayout(column(self._legend, None))
        whole = row(self.chart, side, gap=8)
        whole.setStretch(0, 1)
        head = row(self.title, self.reading, gap=12)
        head.setStretch(1, 1)
        self.add(head, whole, self.note)
        axis.pointed.connect(self._read)

    def show_picture(self, picture: Picture, marks: Sequence[Mark] = ()) -> None:
        self._picture = picture
        self.title.setText(picture.title)
        self.note.setText(picture.note)
        self.note.setVisible(bool(picture.note))
        parts = [name for name in picture.predicted if picture.lists_parts and name in TITLES]
        names = (*((band.name, True) for band in picture.bands), *((name, False) for name in parts))
        if names != self._names:
            self._rebuild(names)
        for name, (_, figure) in self._parts.items():
            figure.setText(gib_figure(picture.predicted[name]))
        self._level_name.setText(f"- - {picture.level_title}")
        set_tip(self._level_name, made_of(picture.predicted))
        layers = tuple(
            Layer(
                band.name, band.title, theme.part_colour(band.name).name(), band.curve.times, band.curve.values,
                is_band=True, is_estimated=band.kind == ESTIMATED,
            )
            for band in reversed(picture.bands)
        )  # fmt: skip
        level = picture.level_bytes / GIB if picture.level_bytes else None
        self.chart.show_layers(layers, least_top=0.05, level=level, marks=marks)
        self._level_text.setText("" if level is None else numerals.decimal(level, 2))
        self._level_name.setVisible(level is not None)
        self._level_text.setVisible(level is not None)
        self._read()

    def restyle(self) -> None:
        """Take the theme's colours."""
        for sign, lines in (("\u25a0", self._lines), ("\u25a1", self._parts)):
            for name, (title, _) in lines.items():
                title.setText(swatch(theme.part_colour(name).name(), sign, TITLES[name]))
        self.chart.update()

    def _rebuild(self, names: tuple[tuple[str, bool], ...]) -> None:
        """A line for each band below the predicted peak, and below them what the peak is made of."""
        for each in itertools.chain.from_iterable([*self._lines.values(), *self._parts.values()]):
            self._legend.removeWidget(each)
            each.hide()
            each.deleteLater()
        self._names = names
        bands = [name for name, is_band in reversed(names) if is_band]
        parts = [name for name, is_band in names if not is_band]
        self._lines = {name: self._line(place) for place, name in enumerate(bands, start=1)}
        self._parts = {name: self._line(place) for place, name in enumerate(parts, start=1 + len(bands))}
        for each in itertools.chain.from_iterable(self._parts.values()):
            set_tip(each, "Predicted part of the next run")
        self.restyle()

    def _line(self, place: int) -> tuple[QLabel, QLabel]:
        title, figure = markup("", "small"), label("", "small")
        self._legend.addWidget(title, place, 0)
        self._legend.addWidget(figure, place, 1, Qt.AlignmentFlag.AlignRight)
        return title, figure

    def _read(self) -> None:
        at = self._axis.cursor
        shown = self._under(at) if at is not None else {}
        for band in self._picture.bands:
            amount = shown.get(band.name) if at is not None else _gib(band.latest_bytes)
            about = ABOUT if band.kind == ESTIMATED else ""
            title, figure = self._lines[band.name]
            figure.setText(
                "n/a" if amount is None else f"{about}{numerals.decimal(amount, 2)}{self._of(band.name)}"
            )
            for each in (title, figure):
                set_tip(each, KINDS[band.kind])
        self.reading.setText(self._reading(at, shown))

    def _of(self, name: str) -> str:
        """The predicted part beside the real one, where the run is not the next one."""
        predicted = self._picture.predicted.get(name)
        return f" of {gib_figure(predicted)}" if predicted and not self._picture.lists_parts else ""

    def _under(self, at: float) -> dict[str, float]:
        """The thickness of each band in GiB at a time: the distance to the next lower edge that is known."""
        edges = self.chart.values_at(at)
        known = [(band.name, edges[band.name]) for band in self._picture.bands if band.name in edges]
        pairs = itertools.pairwise([("", 0.0), *known])
        return {name: max(0.0, edge - below) for (_, below), (name, edge) in pairs}

    def _reading(self, at: float | None, shown: dict[str, float]) -> str:
        if at is None:
            return ""
        when = time_text(at - self._axis.zero)
        total = numerals.measured(numerals.decimal(sum(shown.values()), 2), "GiB") if shown else "n/a"
        mark = self.chart.mark_at(at)
        return f"{when}: {total}{', ' + mark if mark else ''}"


class SmallPanel(Card):
    """A small chart: its title, its newest value, its lines."""

    def __init__(self, axis: TimeAxis, chart: SmallChart) -> None:
        super().__init__(margin=MARGIN)
        self.spec, self._axis = chart, axis
        self.value = Elided("", "small", policy=QSizePolicy.Policy.Preferred)
        self.body.setSpacing(2)
        title = Elided(chart.title, "small")
        self.chart = TimeChart(axis, is_small=True, accessible_name=f"Chart: {chart.title}")
        head = row(title, self.value, gap=8)
        head.setStretch(0, 1)
        self.add(head, self.chart)
        self._newest = SmallReading("n/a")
        self._tip = ""
        axis.pointed.connect(self._read)

    def show_lines(self, feed: MemoryFeed, reading: SmallReading) -> None:
        """Draw what the ring holds of this chart's series."""
        self._newest = reading
        ring, layers = feed.ring, []
        for line in self.spec.lines if ring is not None else ():
            assert ring is not None
            found = ring.curve(line.series, *self._axis.window, self.chart.buckets)
            colour = legible(QColor(line.colour)).name()
            layers.append(Layer(line.series, line.title, colour, found.times, found.values * line.factor))
        self.chart.show_layers(layers, least_top=self.spec.top)
        self._read()

    def restyle(self) -> None:
        """Take the theme's colours."""
        self.chart.update()

    def _read(self) -> None:
        at = self._axis.cursor
        text = self._newest.text
        if at is not None:
            found = [numerals.decimal(value, self.spec.digits) for value in self.chart.values_at(at).values()]
            text = numerals.measured(", ".join(found), self.spec.unit) if found else "n/a"
        self.value.setText(text)
        if self._newest.tip != self._tip:
            self._tip = self._newest.tip
            set_tip(self, self._tip)


def keep_place(widget: QWidget) -> None:
    """Hidden or not, it takes the same room."""
    policy = widget.sizePolicy()
    policy.setRetainSizeWhenHidden(True)
    widget.setSizePolicy(policy)


def made_of(parts: Mapping[str, int]) -> str:
    """What the predicted peak is made of, a line each."""
    lines = [f"{TITLES.get(name, name)}: {gib_text(amount)}" for name, amount in parts.items()]
    return "\n".join(["Made of", *lines]) if lines else ""


def _gib(amount: float | None) -> float | None:
    return None if amount is None else amount / GIB
