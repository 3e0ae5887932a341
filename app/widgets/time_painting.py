"""How charts over time are painted: grid and labels, bands and lines, events, level and crosshair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QImage, QPainter, QPen

from app import theme
from app.presenters import numerals
from app.presenters.run_marks import Mark
from app.widgets.colours import blended
from app.widgets.time_layers import Layer, TimePlot, columns_of, runs_of_known
from app.widgets.time_scale import nice_seconds, nice_step, time_text
from app.widgets.time_surface import BOTTOM, TOP

LINE_PIXELS = 20.0
"""Least distance of two grid lines."""
HATCH_PIXELS = 6
RIGHT_MIDDLE = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
CENTRE_MIDDLE = Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignVCenter
MARK_PIXELS = 10
"""Least distance of two marks of one kind."""
MARK_COLOURS = {"evaluation": "accent", "checkpoint": "good", "out of memory": "bad"}
MARK_SIGNS = {"evaluation": "\u25cf", "checkpoint": "\u25a0", "out of memory": "\u25b2"}


def paint_grid(painter: QPainter, plot: TimePlot, unit: str) -> None:
    """Lines across with their figures, and `unit` over these."""
    t, area = theme.tokens(), plot.area
    lines, text = QPen(QColor(t.line), 1), QColor(t.quiet)
    step = nice_step(plot.top / min(5.0, max(2.0, area.height() / LINE_PIXELS)))
    decimals = max(0, -math.floor(math.log10(step))) if step < 1 else 0
    for index in range(int(plot.top / step) + 1):
        y = plot.y_of(index * step)
        painter.setPen(lines)
        painter.drawLine(QPointF(area.left(), y), QPointF(area.right(), y))
        if unit and y < area.top() + 8:
            continue  # the unit stands there
        painter.setPen(text)
        place = QRectF(0, y - 8, area.left() - 6, 16)
        painter.drawText(place, RIGHT_MIDDLE, numerals.decimal(index * step, decimals))
    painter.setPen(text)
    painter.drawText(QRectF(0, 0, area.left() - 6, TOP + 4), RIGHT_MIDDLE, unit)


def paint_times(painter: QPainter, plot: TimePlot, zero: float, right: float) -> None:
    """Below the plot: times since `zero`, none of them beyond the pixel `right`."""
    t, area = theme.tokens(), plot.area
    lines, text = QPen(QColor(t.line), 1), QColor(t.quiet)
    widest = QFontMetricsF(painter.font()).horizontalAdvance("00:00:00") + 16
    every = nice_seconds((plot.end - plot.start) * widest / area.width())
    painter.setPen(text)
    painter.drawText(QRectF(0, area.bottom() + 3, area.left() - 10, BOTTOM - 3), RIGHT_MIDDLE, "time")
    at = zero + math.ceil((plot.start - zero) / every) * every
    while at <= plot.end:
        x = plot.x_of(at)
        painter.setPen(lines)
        painter.drawLine(QPointF(x, area.bottom()), QPointF(x, area.bottom() + 3))
        painter.setPen(text)
        left = min(max(area.left() - 8, x - widest / 2), right - widest)
        place = QRectF(left, area.bottom() + 3, widest, BOTTOM - 3)
        painter.drawText(place, CENTRE_MIDDLE, time_text(at - zero))
        at += every


def paint_bands(painter: QPainter, plot: TimePlot, layers: Sequence[Layer], ratio: float) -> None:
    """Fill all bands at once, a column of pixels at a time: filling jagged polygons costs Qt ten times as much. `ratio`: pixels
    of the screen for each of the plot."""
    bands = [layer for layer in layers if layer.is_band and len(layer.times)]
    if not bands:
        return
    area = plot.area
    width, height = max(1, round(area.width() * ratio)), max(1, round(area.height() * ratio))
    rows = np.arange(height, dtype=np.int32)[:, None]
    picture = np.zeros((height, width), np.uint32)
    for band in bands:
        xs = (np.asarray(band.times) - plot.start) * (width / (plot.end - plot.start))
        heights = columns_of(xs, np.asarray(band.values, np.float64), width)
        tops = np.clip(np.round(height - heights * (height / plot.top)), 0, height).astype(np.int32)
        colour = QColor(band.colour)
        _fill(picture, rows, tops, blended(colour).rgba())
        if band.is_estimated:
            _fill(picture, rows, tops, blended(colour, 0.9).rgba(), hatch=True)
    image = QImage(picture.data, width, height, 4 * width, QImage.Format.Format_ARGB32_Premultiplied)
    image.setDevicePixelRatio(ratio)
    painter.drawImage(area.topLeft(), image)


def paint_line(painter: QPainter, plot: TimePlot, layer: Layer) -> None:
    if not len(layer.times):
        return
    xs, ys = plot.x_of(np.asarray(layer.times)), plot.y_of(np.asarray(layer.values, np.float64))
    painter.setPen(QPen(QColor(layer.colour), 1))
    for first, last in runs_of_known(ys):
        line = pg.functions.arrayToQPolygonF(xs[first:last], ys[first:last])
        if last - first == 1:
            painter.drawPoint(line.at(0))
        else:
            painter.drawPolyline(line)


def paint_marks(painter: QPainter, plot: TimePlot, marks: Sequence[Mark]) -> None:
    """A line and a sign each; where signs of a kind would cover each other, only the first of them."""
    t, area = theme.tokens(), plot.area
    font = painter.font()
    painter.setFont(theme.font(8))
    painted: dict[str, float] = {}
    for at, kind, _ in marks:
        x = round(plot.x_of(at)) + 0.5
        if not plot.start <= at <= plot.end or x - painted.get(kind, -math.inf) < MARK_PIXELS:
            continue
        painted[kind] = x
        colour = QColor(getattr(t, MARK_COLOURS.get(kind, "quiet")))
        painter.setPen(QPen(colour, 1, Qt.PenStyle.DotLine))
        painter.drawLine(QPointF(x, area.top()), QPointF(x, area.bottom()))
        painter.setPen(colour)
        painter.drawText(QRectF(x - 8, 0, 16, TOP), Qt.AlignmentFlag.AlignCenter, MARK_SIGNS.get(kind, "|"))
    painter.setFont(font)


def paint_level(painter: QPainter, plot: TimePlot, level: float) -> None:
    """Dashed, over everything."""
    y = round(plot.y_of(level)) + 0.5
    painter.setPen(QPen(QColor(theme.tokens().text), 1, Qt.PenStyle.DashLine))
    painter.drawLine(QPointF(plot.area.left(), y), QPointF(plot.area.right(), y))


def paint_cursor(painter: QPainter, plot: TimePlot, at: float) -> None:
    x = round(plot.x_of(at)) + 0.5
    painter.setPen(QPen(QColor(theme.tokens().quiet), 1, Qt.PenStyle.DotLine))
    painter.drawLine(QPointF(x, plot.area.top()), QPointF(x, plot.area.bottom()))


def _fill(picture: Any, rows: Any, tops: Any, colour: int, *, hatch: bool = False) -> None:
    """Paint each column of pixels from its top downwards: with comparisons only where the columns differ."""
    highest, lowest = int(tops.min()), int(tops.max())
    stripes = (rows + np.arange(picture.shape[1], dtype=np.int32)) % HATCH_PIXELS == 0 if hatch else None
    uneven = rows[highest:lowest] >= tops[None, :]
    if stripes is not None:
        uneven &= stripes[highest:lowest]
    np.copyto(picture[highest:lowest], np.uint32(colour), where=uneven)
    np.copyto(picture[lowest:], np.uint32(colour), where=True if stripes is None else stripes[lowest:])
