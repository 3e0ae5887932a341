"""Charts over time, painted by hand: bands and lines on one shared window of time, with a shared crosshair."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PySide6.QtCore import QSize
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QSizePolicy

from app import theme
from app.presenters.run_marks import Mark
from app.widgets import time_painting as paint
from app.widgets.kit import set_tip
from app.widgets.time_axis import TimeAxis
from app.widgets.time_layers import Layer, TimePlot, highest, value_near
from app.widgets.time_surface import TimeSurface

HEADROOM = 1.12
TIP = "Ctrl and wheel: zoom in time. Drag: move in time. Double click: the last 10 minutes."


class TimeChart(TimeSurface):
    """Paints layers over the axis' window; `unit` stands over its figures."""

    def __init__(
        self, axis: TimeAxis, *, is_small: bool = False, accessible_name: str = "", unit: str = ""
    ) -> None:
        super().__init__(axis)
        self._is_small, self._unit = is_small, unit
        self._layers: tuple[Layer, ...] = ()
        self._level: float | None = None
        self._marks: Sequence[Mark] = ()
        self._top = 1.0
        self.setMinimumHeight(52 if is_small else 110)
        set_tip(self, "" if is_small else TIP)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setAccessibleName(accessible_name)

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
        most = max(map(highest, layers), default=0.0)
        height = max(most, level or 0.0) or 1.0  # of nothing the scale is that of one, whose labels are short
        self._top = max(height * HEADROOM, least_top)
        self.update()

    def values_at(self, at: float) -> dict[str, float]:
        """The value of each layer at the sample nearest to `at`; without those that are unknown there."""
        found = {layer.name: value_near(layer, at) for layer in self._layers}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def mark_at(self, at: float) -> str:
        """What the event under the crosshair was, if there is one."""
        start, end = self.axis.window
        reach = 4 * (end - start) / max(1.0, self._plot.width())
        return next((mark.text for mark in self._marks if abs(mark.unix - at) <= reach), "")

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setFont(theme.font(theme.SMALL - 1))
        plot = TimePlot(self._plot, *self.axis.window, self._top)
        paint.paint_grid(painter, plot, self._unit)
        if not self._is_small:
            paint.paint_times(painter, plot, self.axis.zero, self.width())
        painter.save()
        painter.setClipRect(plot.area)
        paint.paint_bands(painter, plot, self._layers, self.devicePixelRatioF())
        for layer in self._layers:
            paint.paint_line(painter, plot, layer)
        painter.restore()
        paint.paint_marks(painter, plot, self._marks)
        if self._level is not None:
            paint.paint_level(painter, plot, self._level)
        cursor = self.axis.cursor
        if cursor is not None and plot.start <= cursor <= plot.end:
            paint.paint_cursor(painter, plot, cursor)
        painter.end()  # whoever holds the frame (a debugger, a profiler) must not keep the painter
