"""Live charts on pyqtgraph: curves over steps, stacked memory over time. Importing this costs 0.6 s: do it late."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QPointF, QSize, Qt
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QLabel, QSizePolicy, QWidget

from app import theme
from app.presenters.words import clock_text, number_text
from app.widgets.kit import Card, column, emptied, label, row

GIB = 1024**3
POINTS_DRAWN = 4000
LEGEND_WIDTH = 190


@dataclass(frozen=True)
class CurveStyle:
    """How one curve looks. `colour` is a token name or #rrggbb; `is_dots` draws points instead of a line."""

    name: str
    title: str
    colour: str
    width: float = 1.5
    is_dots: bool = False
    is_faint: bool = False


class Chart(Card):
    """A titled plot with a crosshair whose reading stands beside the title."""

    def __init__(
        self, title: str, styles: Sequence[CurveStyle], *, is_small: bool = False, unit: str = ""
    ) -> None:
        super().__init__(margin=10)
        self._styles, self._unit = {style.name: style for style in styles}, unit
        self._title = label(title, "strong")
        self._reading = label("", "small")
        self._legend = [label(f"\u25cf {style.title}", "small") for style in styles if len(styles) > 1]
        self.add(row(self._title, *self._legend, None, self._reading, gap=12))
        self.plot = pg.PlotWidget()
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.setMinimumHeight(56 if is_small else 96)
        self.plot.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Expanding)
        self.plot.sizeHint = lambda: QSize(240, 60 if is_small else 110)
        self.plot.setAccessibleName(f"Chart: {title}")
        self.add(self.plot)
        self._data: dict[str, tuple[Any, Any]] = {}
        self._curves = {style.name: self._make_curve(style) for style in styles}
        self._cross = pg.InfiniteLine(angle=90, movable=False)
        self._cross.hide()
        self.plot.addItem(self._cross, ignoreBounds=True)
        self.plot.scene().sigMouseMoved.connect(self._point)
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
            chip.setStyleSheet(f"color: {_colour(style.colour).name()}")
        for name, curve in self._curves.items():
            self._paint_curve(curve, self._styles[name])

    def set_points(self, name: str, x: Any, y: Any) -> None:
        """Show these points; arrays are read, not kept."""
        xs, ys = np.array(x, dtype=float), np.array(y, dtype=float)
        self._data[name] = (xs, ys)
        self._curves[name].setData(xs, ys)

    def clear_points(self) -> None:
        for name in self._curves:
            self.set_points(name, (), ())

    def set_y_from_zero(self) -> None:
        self.plot.setLimits(yMin=0)
        self.plot.enableAutoRange(y=True)

    def follow(self, first: Chart) -> None:
        """Share the x axis with `first`."""
        self.plot.setXLink(first.plot)

    def _make_curve(self, style: CurveStyle) -> Any:
        curve = pg.PlotDataItem([], [], connect="finite")
        if not style.is_dots:
            curve.setDownsampling(auto=True, method="peak")
            curve.setClipToView(True)
        self.plot.addItem(curve)
        return curve

    def _paint_curve(self, curve: Any, style: CurveStyle) -> None:
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

    def _point(self, position: QPointF) -> None:
        if not self.plot.sceneBoundingRect().contains(position):
            self._cross.hide()
            self._reading.setText("")
            return
        x = self.plot.getPlotItem().vb.mapSceneToView(position).x()
        self._cross.setPos(x)
        self._cross.show()
        self._reading.setText(self.reading_at(x))

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
        return f"step {x:.0f}"

    def y_text(self, y: float) -> str:
        return f"{number_text(y)}{' ' + self._unit if self._unit else ''}"


class MemoryChart(Chart):
    """Stacked parts over time, the predicted peak as a dashed line, and the newest figures beside it as a legend.

    Time is seconds since the first sample.
    """

    def __init__(self, title: str, is_small: bool = False) -> None:
        super().__init__(title, (), is_small=is_small)
        self._areas: dict[str, Any] = {}
        self._stack: dict[str, tuple[Any, Any]] = {}
        self._titles: dict[str, str] = {}
        self._times: Any = np.zeros(0)
        self._peak = pg.InfiniteLine(angle=0, movable=False)
        self._peak.hide()
        self.plot.addItem(self._peak, ignoreBounds=True)
        self._legend_box = column(gap=1)
        self._figures: dict[str, QLabel] = {}
        self._peak_text = label("", "small")
        side = QWidget()
        side.setFixedWidth(LEGEND_WIDTH)
        side.setLayout(self._legend_box)
        self.body.removeWidget(self.plot)
        whole = row(self.plot, side, gap=10)
        whole.setStretch(0, 1)
        self.add(whole)
        self.plot.getPlotItem().getAxis("bottom").tickStrings = _time_ticks
        self.plot.setLimits(yMin=0)
        self.restyle()

    def set_title(self, title: str) -> None:
        self._title.setText(title)

    def show_stack(
        self,
        times: Sequence[float],
        parts: Mapping[str, Sequence[float]],
        titles: Mapping[str, str],
        predicted_bytes: float | None = None,
    ) -> None:
        """`parts`: name -> bytes at each time, from the bottom up."""
        xs = np.array(times, dtype=float)
        self._times = xs
        if tuple(parts) != tuple(self._areas):
            self._rebuild(tuple(parts), titles)
        total = np.zeros_like(xs)
        for name, values in parts.items():
            ys = np.nan_to_num(np.array(values, dtype=float)) / GIB
            total = total + ys
            self._stack[name] = (xs, total)
            self._areas[name].setData(*_thinned(xs, total))
            self._figures[name].setText(f"\u25a0 {titles.get(name, name)} {ys[-1]:.2f}" if len(ys) else "")
        if predicted_bytes:
            self._peak.setPos(predicted_bytes / GIB)
        self._peak.setVisible(bool(predicted_bytes))
        self._peak_text.setText(f"- - predicted peak {predicted_bytes / GIB:.2f}" if predicted_bytes else "")
        top = max(float(total.max()) if len(total) else 0.0, (predicted_bytes or 0) / GIB, 0.05)
        self.plot.setYRange(0, 1.12 * top, padding=0)

    def restyle(self) -> None:
        super().restyle()
        if hasattr(self, "_peak"):
            self._peak.setPen(pg.mkPen(theme.tokens().text, width=1.2, style=Qt.PenStyle.DashLine))
            for name, area in self._areas.items():
                _fill(area, name)

    def _rebuild(self, names: tuple[str, ...], titles: Mapping[str, str]) -> None:
        for area in self._areas.values():
            self.plot.removeItem(area)
        self._legend_box.removeWidget(self._peak_text)
        emptied(self._legend_box)
        self._areas, self._stack, self._figures, self._titles = {}, {}, {}, dict(titles)
        for depth, name in enumerate(names):
            area = pg.PlotCurveItem([], [], fillLevel=0)
            area.setZValue(-depth)
            _fill(area, name)
            self.plot.addItem(area)
            self._areas[name] = area
            self._figures[name] = label("", "small")
            self._figures[name].setStyleSheet(f"color: {_legible(theme.part_colour(name)).name()}")
        for name in reversed(names):
            self._legend_box.addWidget(self._figures[name])
        self._legend_box.insertWidget(0, self._peak_text)
        self._legend_box.addStretch(1)

    def reading_at(self, x: float) -> str:
        if not len(self._times):
            return ""
        index = int(np.argmin(np.abs(self._times - x)))
        found, below = [], 0.0
        for name, (_, total) in self._stack.items():
            found.append(f"{self._titles.get(name, name).lower()} {total[index] - below:.2f}")
            below = float(total[index])
        return f"{clock_text(float(self._times[index]))}: {below:.2f} GiB"


def _thinned(xs: Any, ys: Any) -> tuple[Any, Any]:
    """At most POINTS_DRAWN points that keep every extreme: the least and the largest of each bucket."""
    if len(xs) <= POINTS_DRAWN:
        return xs, ys
    size = -(-len(xs) // (POINTS_DRAWN // 2))
    whole = len(xs) // size * size
    body = ys[:whole].reshape(-1, size)
    base = np.arange(0, whole, size)
    picks = np.sort(np.stack([base + body.argmin(1), base + body.argmax(1)], 1), axis=1).ravel()
    index = np.concatenate([picks, np.arange(whole, len(xs))])
    return xs[index], ys[index]


def _fill(area: Any, name: str) -> None:
    colour = theme.part_colour(name)
    area.setPen(pg.mkPen(colour, width=1))
    soft = QColor(colour)
    soft.setAlphaF(0.55)
    # Taller areas lie behind lower ones, so each must hide what is behind it.
    area.setBrush(pg.mkBrush(_blend(soft, QColor(theme.tokens().panel))))


def _legible(colour: QColor) -> QColor:
    """The part's colour, lighter on a dark panel and darker on a light one where text needs it."""
    if theme.tokens().is_dark:
        return colour.lighter(150) if colour.lightnessF() < 0.45 else colour
    return colour.darker(150) if colour.lightnessF() > 0.45 else colour


def _blend(over: QColor, under: QColor) -> QColor:
    a = over.alphaF()
    mixed = [int(a * x + (1 - a) * y) for x, y in zip(_rgb(over), _rgb(under), strict=True)]
    return QColor(*mixed)


def _colour(name: str) -> QColor:
    return QColor(name if name.startswith("#") else getattr(theme.tokens(), name))


def _time_ticks(values: Sequence[float], scale: float, spacing: float) -> list[str]:
    """Times as 0:30, 12:40, 1:05:00."""
    found = []
    for value in values:
        whole = int(value)
        hours, minutes, seconds = whole // 3600, whole // 60 % 60, whole % 60
        found.append(f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}")
    return found


def _rgb(colour: QColor) -> tuple[int, int, int]:
    return colour.red(), colour.green(), colour.blue()
