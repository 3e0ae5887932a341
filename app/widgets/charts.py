"""Live charts on pyqtgraph: curves over steps. Importing this costs 0.6 s: do it late."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QPointF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFocusEvent, QKeyEvent, QWheelEvent
from PySide6.QtWidgets import QSizePolicy

from app import theme
from app.presenters import numerals
from app.presenters.words import number_text
from app.widgets.colours import swatch
from app.widgets.kit import Card, Elided, markup, row, set_tip
from app.widgets.long_curve import long_curve
from app.widgets.time_scale import nice_step

LEAST_TICK, MOST_TICK = 1e-3, 1e7
"""Labels between these have no exponent."""
ACROSS_PIXELS, UP_PIXELS = 64.0, 18.0
KEYS_IN_WORDS = "Arrows: move the crosshair. Plus and minus: zoom. Home: everything."
STEPS: dict[int, float] = {Qt.Key.Key_Left: -0.01, Qt.Key.Key_Right: 0.01}
"""Shares of what is seen that an arrow moves the crosshair by."""
ZOOMS: dict[int, float] = {Qt.Key.Key_Plus: 0.8, Qt.Key.Key_Minus: 1.25}


@dataclass(frozen=True)
class CurveStyle:
    """How one curve looks. `colour` is a token name or #rrggbb; `is_dots` draws points instead of a line."""

    name: str
    title: str
    colour: str
    width: float = 1.5
    is_dots: bool = False
    is_faint: bool = False

    @property
    def sign(self) -> str:
        """What stands before its title: as it is drawn."""
        return "\u25cf" if self.is_dots else "\u2500" if self.is_faint else "\u2501"


class QuietAxis(pg.AxisItem):
    """Few round labels, as many as there is room for; steps and counts are whole."""

    counted = "step"
    """What is along the bottom; empty where another place says so."""

    def tickSpacing(self, low: float, high: float, size: float) -> list[tuple[float, float]]:
        is_across = self.orientation == "bottom"
        room = size / (ACROSS_PIXELS if is_across else UP_PIXELS)
        step = nice_step((high - low) / max(2.0, room))
        return [(max(1.0, step) if is_across else step, 0)]

    def tickStrings(self, values: list[float], scale: float, spacing: float) -> list[str]:
        """The first label below the plot tells what is counted, which takes no line of its own."""
        is_across = self.orientation == "bottom"
        if self.logMode:
            found = [numerals.in_style(each) for each in self.logTickStrings(values, scale, spacing)]
        else:
            places = max(0, math.ceil(-math.log10(spacing * scale)))
            found = [_tick(value * scale, places) for value in values]
        is_named = is_across and found and self.counted
        return [f"{self.counted} {found[0]}", *found[1:]] if is_named else found


class QuietPlot(pg.PlotWidget):
    """A wheel scrolls the page that the plot is on; with Ctrl it zooms."""

    def wheelEvent(self, event: QWheelEvent) -> None:
        if event.modifiers() & Qt.KeyboardModifier.ControlModifier:
            super().wheelEvent(event)
            event.accept()
        else:
            event.ignore()


def answer_key(event: QKeyEvent, plot: Any, cross: Any, read_at: Callable[[float], None]) -> bool:
    """What a mouse does in a plot, by a key; False for one that means nothing here. `read_at(x)` moves the crosshair."""
    view, key = plot.getPlotItem().vb, event.key()
    (low, high), _ = view.viewRange()
    x = cross.value() if cross.isVisible() else (low + high) / 2
    if key in STEPS:
        read_at(min(high, max(low, x + STEPS[key] * (high - low))))
    elif key in ZOOMS:
        view.scaleBy((ZOOMS[key], 1.0), center=(x, 0.0))
    elif key == Qt.Key.Key_Home:
        plot.enableAutoRange()
    else:
        return False
    return True


def make_curve(plot: pg.PlotWidget, style: CurveStyle) -> Any:
    if not style.is_dots:
        return long_curve(plot)
    curve = pg.PlotDataItem([], [], connect="finite")
    plot.addItem(curve)
    return curve


def paint_curve(curve: Any, style: CurveStyle) -> None:
    colour = _colour(style.colour)
    if style.is_faint:
        colour.setAlphaF(0.45)
    if style.is_dots:
        curve.setPen(pg.mkPen(colour, width=1, style=Qt.PenStyle.DotLine))
        curve.setSymbol("o")
        curve.setSymbolSize(8)
        curve.setSymbolBrush(colour)
        curve.setSymbolPen(pg.mkPen(theme.tokens().panel, width=1))
    else:
        curve.setPen(pg.mkPen(colour, width=style.width))


class Chart(Card):
    """A titled plot with a crosshair whose reading stands beside the title.

    Signals: `pointed(x)` where the mouse is, None when it left.
    """

    pointed = Signal(object)

    def __init__(
        self, title: str, styles: Sequence[CurveStyle], *, is_small: bool = False, unit: str = ""
    ) -> None:
        super().__init__(margin=10)
        self._styles, self._unit = {style.name: style for style in styles}, unit
        self._title = Elided(
            f"{title} ({unit})" if unit else title, "strong", policy=QSizePolicy.Policy.Preferred
        )
        self._reading = Elided("", "small")  # it never takes room from the plot
        self._reading.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
        self._legend = [markup("", "small") for _ in styles if len(styles) > 1]
        head = row(self._title, *self._legend, self._reading, gap=12)
        head.setStretch(head.count() - 1, 1)
        self.add(head)
        self.plot = QuietPlot(axisItems={side: QuietAxis(side) for side in ("left", "bottom")})
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.setMouseEnabled(x=True, y=False)
        set_tip(self.plot, "Ctrl and wheel: zoom. Drag: move. Double click: everything.")
        self.plot.setMinimumHeight(46 if is_small else 96)
        self.plot.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Expanding)
        self.plot.sizeHint = lambda: QSize(240, 46 if is_small else 110)
        self.plot.setAccessibleName(f"Chart: {title}")
        self.plot.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccessibleName(f"Chart: {title}")
        self.setAccessibleDescription(KEYS_IN_WORDS)
        self.add(self.plot)
        self._data: dict[str, tuple[Any, Any]] = {}
        self._are_labels_shown = True
        self._show_labels(False)
        self._curves = {style.name: make_curve(self.plot, style) for style in styles}
        self._cross = pg.InfiniteLine(angle=90, movable=False)
        self._cross.hide()
        self.plot.addItem(self._cross, ignoreBounds=True)
        self.plot.scene().sigMouseMoved.connect(self._point)
        self.plot.scene().sigMouseClicked.connect(self._click)
        self.pointed.connect(self.show_cross)
        self.restyle()

    def restyle(self) -> None:
        """Take the theme's colours."""
        t = theme.tokens()
        self.plot.setBackground(t.panel)
        plot = self.plot.getPlotItem()
        for side in ("left", "bottom"):
            axis = plot.getAxis(side)
            axis.setPen(pg.mkPen(t.line))
            axis.setTextPen(pg.mkPen(t.quiet))
            axis.setTickFont(theme.font(theme.SMALL - 1))
            axis.setStyle(tickLength=-4, autoExpandTextSpace=True)
        plot.getAxis("left").setWidth(52)
        plot.showGrid(x=False, y=True, alpha=0.12)
        self._cross.setPen(pg.mkPen(t.quiet, style=Qt.PenStyle.DotLine))
        for style, chip in zip(self._styles.values(), self._legend, strict=False):
            chip.setText(swatch(_colour(style.colour).name(), style.sign, style.title))
        for name, curve in self._curves.items():
            paint_curve(curve, self._styles[name])

    def set_points(self, name: str, x: Any, y: Any) -> None:
        """Show these points; arrays are read, not kept."""
        xs, ys = np.array(x, dtype=float), np.array(y, dtype=float)
        self._data[name] = (xs, ys)
        self._curves[name].setData(xs, ys)
        self._show_labels(any(len(known) for known, _ in self._data.values()))

    def settle(self) -> None:
        """Find the range of what is shown now, not in the middle of painting it: the chart would be painted a second time."""
        self.plot.scene().prepareForPaint()

    def _show_labels(self, are_shown: bool) -> None:
        """An empty chart has nothing to label."""
        if are_shown != self._are_labels_shown:
            self._are_labels_shown = are_shown
            for side in ("left", "bottom"):
                self.plot.getPlotItem().getAxis(side).setStyle(showValues=are_shown)

    def follow(self, first: Chart) -> None:
        """Share the x axis and the crosshair with `first`."""
        self.plot.setXLink(first.plot)
        first.pointed.connect(self.show_cross)
        self.pointed.connect(first.pointed)

    def show_cross(self, x: float | None) -> None:
        """The crosshair and what is under it; None takes it away."""
        self._cross.setVisible(x is not None)
        self._reading.setText("" if x is None else self.reading_at(x))
        if x is not None:
            self._cross.setPos(x)

    def leaveEvent(self, event: QEvent) -> None:
        self.pointed.emit(None)

    def focusOutEvent(self, event: QFocusEvent) -> None:
        super().focusOutEvent(event)
        self.pointed.emit(None)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if not answer_key(event, self.plot, self._cross, self.pointed.emit):
            super().keyPressEvent(event)

    def _point(self, position: QPointF) -> None:
        view = self.plot.getPlotItem().vb
        is_inside = view.sceneBoundingRect().contains(position)
        self.pointed.emit(view.mapSceneToView(position).x() if is_inside else None)

    def _click(self, event: Any) -> None:
        """A double click shows everything again."""
        if event.double():
            self.plot.enableAutoRange()

    def reading_at(self, x: float) -> str:
        """The nearest point of each curve in words."""
        found = []
        at = ""
        for name, (xs, ys) in self._data.items():
            if not len(xs):
                continue
            index = int(np.argmin(np.abs(xs - x)))
            at = at or self.x_text(float(xs[index]))
            if math.isfinite(ys[index]):
                found.append(f"{self._styles[name].title.lower()} {self.y_text(float(ys[index]))}")
        return f"{at}: " + ", ".join(found) if found else ""

    def x_text(self, x: float) -> str:
        return f"step {numerals.count(round(x))}"

    def y_text(self, y: float) -> str:
        return f"{number_text(y)}{' ' + self._unit if self._unit else ''}"


def _tick(value: float, places: int) -> str:
    return numerals.decimal(value, places) if LEAST_TICK <= abs(value) < MOST_TICK else numerals.short(value)


def _colour(name: str) -> QColor:
    return QColor(name if name.startswith("#") else getattr(theme.tokens(), name))
