"""Charts over time, painted by hand: bands and lines on one shared window of time, with a shared crosshair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt
from PySide6.QtGui import (
    QColor,
    QFontMetricsF,
    QImage,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QWheelEvent,
)
from PySide6.QtWidgets import QSizePolicy, QWidget

from app import theme
from app.presenters import numerals
from app.presenters.run_marks import Mark
from app.widgets.kit import set_tip
from app.widgets.time_axis import TimeAxis

WHEEL_FACTOR = 1.25
HEADROOM = 1.12
LEFT, RIGHT, TOP, BOTTOM = 44.0, 8.0, 12.0, 18.0
LINE_PIXELS = 20.0
"""Least distance of two grid lines."""
HATCH_PIXELS = 6
RIGHT_MIDDLE = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
MARK_PIXELS = 10
"""Least distance of two marks of one kind."""
MARK_COLOURS = {"evaluation": "accent", "checkpoint": "good", "out of memory": "bad"}
MARK_SIGNS = {"evaluation": "\u25cf", "checkpoint": "\u25a0", "out of memory": "\u25b2"}


@dataclass(frozen=True)
class Layer:
    """A curve: `times` in Unix seconds, `values` in the chart's unit, NaN for a gap. A band is filled down to zero and
    hides what lies behind it: bands come from the highest to the lowest."""

    name: str
    title: str
    colour: str
    times: Any
    values: Any
    is_band: bool = False
    is_estimated: bool = False
    """Then a band is hatched."""


class TimeChart(QWidget):
    """Paints layers over the axis' window; `unit` stands over its figures."""

    def __init__(
        self, axis: TimeAxis, *, is_small: bool = False, accessible_name: str = "", unit: str = ""
    ) -> None:
        super().__init__()
        self.axis, self._is_small, self._unit = axis, is_small, unit
        self._layers: tuple[Layer, ...] = ()
        self._level: float | None = None
        self._marks: Sequence[Mark] = ()
        self._top = 1.0
        self._drag: float | None = None
        self.setMouseTracking(True)
        self.setCursor(Qt.CursorShape.CrossCursor)
        self.setMinimumHeight(52 if is_small else 110)
        set_tip(
            self,
            ""
            if is_small
            else "Ctrl and wheel: zoom in time. Drag: move in time. Double click: the last 10 minutes.",
        )
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setAccessibleName(accessible_name)
        axis.pointed.connect(self.update)

    def sizeHint(self) -> QSize:
        return QSize(120, 56 if self._is_small else 128)

    @property
    def buckets(self) -> int:
        """How finely to sample for this width."""
        return max(32, int(self._plot.width()))

    def show_layers(
        self,
        layers: Sequence[Layer],
        *,
        least_top: float = 0.0,
        level: float | None = None,
        marks: Sequence[Mark] = (),
    ) -> None:
        """`level`: a dashed line; `marks`: a thin line each."""
        self._layers, self._level, self._marks = tuple(layers), level, marks
        most = max((_most(layer.values) for layer in layers), default=0.0)
        self._top = max(most, level or 0.0, 1e-9) * HEADROOM
        self._top = max(self._top, least_top)
        self.update()

    def values_at(self, at: float) -> dict[str, float]:
        """The value of each layer at the sample nearest to `at`; without those that are unknown there."""
        found = {}
        for layer in self._layers:
            if not len(layer.times):
                continue
            place = int(np.searchsorted(layer.times, at))
            place = min(place, len(layer.times) - 1)
            if place and at - layer.times[place - 1] < layer.times[place] - at:
                place -= 1
            value = float(layer.values[place])
            if math.isfinite(value):
                found[layer.name] = value
        return found

    def mark_at(self, at: float) -> str:
        """What the event under the crosshair was, if there is one."""
        start, end = self.axis.window
        reach = 4 * (end - start) / max(1.0, self._plot.width())
        return next((mark.text for mark in self._marks if abs(mark.unix - at) <= reach), "")

    # ------------------------------------------------------------ painting

    @property
    def _plot(self) -> QRectF:
        return QRectF(
            LEFT, TOP, max(10.0, self.width() - LEFT - RIGHT), max(10.0, self.height() - TOP - BOTTOM)
        )

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setFont(theme.font(theme.SMALL - 1))
        plot = self._plot
        self._paint_grid(painter, plot)
        painter.save()
        painter.setClipRect(plot)
        self._paint_bands(painter, plot)
        for layer in self._layers:
            self._paint_line(painter, plot, layer)
        painter.restore()
        self._paint_marks(painter, plot)
        self._paint_lines(painter, plot)
        painter.end()  # whoever holds the frame (a debugger, a profiler) must not keep the painter

    def _paint_grid(self, painter: QPainter, plot: QRectF) -> None:
        t = theme.tokens()
        lines, text = QPen(QColor(t.line), 1), QColor(t.quiet)
        step = nice_step(self._top / min(5.0, max(2.0, plot.height() / LINE_PIXELS)))
        decimals = max(0, -math.floor(math.log10(step))) if step < 1 else 0
        for index in range(int(self._top / step) + 1):
            y = plot.bottom() - plot.height() * index * step / self._top
            painter.setPen(lines)
            painter.drawLine(QPointF(plot.left(), y), QPointF(plot.right(), y))
            if self._unit and y < plot.top() + 8:
                continue  # the unit stands there
            painter.setPen(text)
            place = QRectF(0, y - 8, plot.left() - 6, 16)
            painter.drawText(place, RIGHT_MIDDLE, numerals.decimal(index * step, decimals))
        painter.setPen(text)
        painter.drawText(QRectF(0, 0, plot.left() - 6, TOP + 4), RIGHT_MIDDLE, self._unit)
        if not self._is_small:
            self._paint_times(painter, plot)

    def _paint_times(self, painter: QPainter, plot: QRectF) -> None:
        t = theme.tokens()
        lines, text = QPen(QColor(t.line), 1), QColor(t.quiet)
        start, end = self.axis.window
        zero = self.axis.zero
        widest = QFontMetricsF(painter.font()).horizontalAdvance("00:00:00") + 16
        every = nice_seconds((end - start) * widest / plot.width())
        painter.setPen(text)
        painter.drawText(QRectF(0, plot.bottom() + 3, plot.left() - 10, BOTTOM - 3), RIGHT_MIDDLE, "time")
        at = zero + math.ceil((start - zero) / every) * every
        while at <= end:
            x = self._x(plot, at)
            painter.setPen(lines)
            painter.drawLine(QPointF(x, plot.bottom()), QPointF(x, plot.bottom() + 3))
            painter.setPen(text)
            left = min(max(plot.left() - 8, x - widest / 2), self.width() - widest)
            place = QRectF(left, plot.bottom() + 3, widest, BOTTOM - 3)
            painter.drawText(place, Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignVCenter, time_text(at - zero))  # fmt: skip
            at += every

    def _paint_bands(self, painter: QPainter, plot: QRectF) -> None:
        """Fill all bands at once, a column of pixels at a time: filling jagged polygons costs Qt ten times as much."""
        bands = [layer for layer in self._layers if layer.is_band and len(layer.times)]
        if not bands:
            return
        ratio = self.devicePixelRatioF()
        width, height = max(1, round(plot.width() * ratio)), max(1, round(plot.height() * ratio))
        start, end = self.axis.window
        rows = np.arange(height, dtype=np.int32)[:, None]
        picture = np.zeros((height, width), np.uint32)
        for band in bands:
            xs = (np.asarray(band.times) - start) * (width / (end - start))
            heights = columns_of(xs, np.asarray(band.values, np.float64), width)
            tops = np.clip(np.round(height - heights * (height / self._top)), 0, height).astype(np.int32)
            colour = QColor(band.colour)
            _fill(picture, rows, tops, blended(colour).rgba())
            if band.is_estimated:
                _fill(picture, rows, tops, blended(colour, 0.9).rgba(), hatch=True)
        image = QImage(picture.data, width, height, 4 * width, QImage.Format.Format_ARGB32_Premultiplied)
        image.setDevicePixelRatio(ratio)
        painter.drawImage(plot.topLeft(), image)

    def _paint_line(self, painter: QPainter, plot: QRectF, layer: Layer) -> None:
        if not len(layer.times):
            return
        start, end = self.axis.window
        xs = plot.left() + (np.asarray(layer.times) - start) * (plot.width() / (end - start))
        ys = plot.bottom() - np.asarray(layer.values, np.float64) * (plot.height() / self._top)
        painter.setPen(QPen(QColor(layer.colour), 1))
        for first, last in runs_of_known(ys):
            line = pg.functions.arrayToQPolygonF(xs[first:last], ys[first:last])
            if last - first == 1:
                painter.drawPoint(line.at(0))
            else:
                painter.drawPolyline(line)

    def _paint_marks(self, painter: QPainter, plot: QRectF) -> None:
        """A line and a sign each; where signs of a kind would cover each other, only the first of them."""
        start, end = self.axis.window
        t = theme.tokens()
        font = painter.font()
        painter.setFont(theme.font(8))
        painted: dict[str, float] = {}
        for at, kind, _ in self._marks:
            x = round(self._x(plot, at)) + 0.5
            if not start <= at <= end or x - painted.get(kind, -math.inf) < MARK_PIXELS:
                continue
            painted[kind] = x
            colour = QColor(getattr(t, MARK_COLOURS.get(kind, "quiet")))
            painter.setPen(QPen(colour, 1, Qt.PenStyle.DotLine))
            painter.drawLine(QPointF(x, plot.top()), QPointF(x, plot.bottom()))
            painter.setPen(colour)
            painter.drawText(QRectF(x - 8, 0, 16, TOP), Qt.AlignmentFlag.AlignCenter, MARK_SIGNS.get(kind, "|"))  # fmt: skip
        painter.setFont(font)

    def _paint_lines(self, painter: QPainter, plot: QRectF) -> None:
        t = theme.tokens()
        if self._level is not None:
            y = round(plot.bottom() - plot.height() * self._level / self._top) + 0.5
            painter.setPen(QPen(QColor(t.text), 1, Qt.PenStyle.DashLine))
            painter.drawLine(QPointF(plot.left(), y), QPointF(plot.right(), y))
        cursor = self.axis.cursor
        start, end = self.axis.window
        if cursor is not None and start <= cursor <= end:
            x = round(self._x(plot, cursor)) + 0.5
            painter.setPen(QPen(QColor(t.quiet), 1, Qt.PenStyle.DotLine))
            painter.drawLine(QPointF(x, plot.top()), QPointF(x, plot.bottom()))

    def _x(self, plot: QRectF, at: float) -> float:
        start, end = self.axis.window
        return plot.left() + plot.width() * (at - start) / (end - start)

    # ------------------------------------------------------------ the mouse

    def time_at(self, x: float) -> float:
        """The time under a pixel, within the window."""
        start, end = self.axis.window
        share = (x - self._plot.left()) / self._plot.width()
        return start + min(max(share, 0.0), 1.0) * (end - start)

    def wheelEvent(self, event: QWheelEvent) -> None:
        """Zooms with Ctrl; without it the page scrolls on."""
        turned = event.angleDelta().y()
        if not event.modifiers() & Qt.KeyboardModifier.ControlModifier:
            event.ignore()
            return
        if turned:
            self.axis.zoom(WHEEL_FACTOR ** (-turned / 120), self.time_at(event.position().x()))
        event.accept()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        self._drag = event.position().x()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        self._drag = None

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        self.axis.reset()

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        x = event.position().x()
        if self._drag is not None:
            start, end = self.axis.window
            moved, self._drag = self._drag - x, x
            self.axis.move(moved * (end - start) / self._plot.width())
        self.axis.point(self.time_at(x))

    def leaveEvent(self, event: QEvent) -> None:
        self.axis.point(None)


def nice_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(rough, 1e-12)))
    return next(power * each for each in (1, 2, 5, 10) if power * each >= rough * 0.999)


def nice_seconds(rough: float) -> float:
    """The next step that a clock knows."""
    known = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
    return next((float(each) for each in known if each >= rough), 86400.0 * math.ceil(rough / 86400))


def time_text(seconds: float) -> str:
    """`0:30`, `12:40`, `1:05:00`; before zero with a minus sign."""
    whole = abs(round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    text = numerals.of_clock(hours, minutes, rest) if hours else numerals.of_clock(minutes, rest)
    return f"\u2212{text}" if seconds < -0.5 else text


def runs_of_known(values: Any) -> list[tuple[int, int]]:
    """(first, one past the last) of each stretch without NaN."""
    known = np.isfinite(values)
    if known.all():
        return [(0, len(values))] if len(values) else []
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def columns_of(xs: Any, values: Any, width: int) -> Any:
    """The highest value in each of `width` columns of pixels; 0 where it is unknown. `xs` are in pixels and ordered."""
    at = np.arange(width) + 0.5
    right = np.clip(np.searchsorted(xs, at), 1, max(1, len(xs) - 1))
    known = np.isfinite(values)
    found = np.zeros(width)
    if known.sum() > 1:
        is_between = known[right - 1] & known[right] & (at >= xs[0]) & (at <= xs[-1])
        found = np.where(is_between, np.interp(at, xs[known], values[known]), 0.0)
    column = np.floor(xs).astype(int)
    is_shown = known & (column >= 0) & (column < width)
    np.maximum.at(found, column[is_shown], values[is_shown])
    return found


def _fill(picture: Any, rows: Any, tops: Any, colour: int, *, hatch: bool = False) -> None:
    """Paint each column of pixels from its top downwards: with comparisons only where the columns differ."""
    highest, lowest = int(tops.min()), int(tops.max())
    stripes = (rows + np.arange(picture.shape[1], dtype=np.int32)) % HATCH_PIXELS == 0 if hatch else None
    uneven = rows[highest:lowest] >= tops[None, :]
    if stripes is not None:
        uneven &= stripes[highest:lowest]
    np.copyto(picture[highest:lowest], np.uint32(colour), where=uneven)
    np.copyto(picture[lowest:], np.uint32(colour), where=True if stripes is None else stripes[lowest:])


def blended(colour: QColor, share: float = 0.55) -> QColor:
    """The colour, softened towards the panel it is painted on, and opaque."""
    under = QColor(theme.tokens().panel)
    pairs = ((colour.red(), under.red()), (colour.green(), under.green()), (colour.blue(), under.blue()))
    return QColor(*(int(share * a + (1 - share) * b) for a, b in pairs))


def swatch(colour: str, sign: str, text: str) -> str:
    """A coloured sign before a text, as rich text."""
    return f'<span style="color: {colour}">{sign}</span>&nbsp;{text}'


def legible(colour: QColor) -> QColor:
    """The colour, lighter on a dark panel and darker on a light one where text needs it."""
    if theme.tokens().is_dark:
        return colour.lighter(150) if colour.lightnessF() < 0.45 else colour
    return colour.darker(150) if colour.lightnessF() > 0.35 else colour


def _most(values: Any) -> float:
    known = np.asarray(values)[np.isfinite(values)]
    return float(known.max()) if known.size else 0.0
