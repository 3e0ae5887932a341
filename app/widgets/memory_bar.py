"""The memory bars: stacked parts on a shared scale, against what the GPU has. Painted by hand, no chart library."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Signal
from PySide6.QtGui import QHelpEvent, QMouseEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from app.presenters.memory import BarState, Segment
from app.presenters.memory_words import Capacity
from app.widgets.bar_painting import Hit, paint_bar
from app.widgets.kit import as_written
from app.widgets.memory_legend import MemoryLegend
from app.widgets.memory_scale import MemoryScale, paint_capacity, paint_ticks

CAPTION_WIDTH, TOTAL_WIDTH = 196, 92
BETWEEN, SCALE_HEIGHT = 14, 40
NARROWEST = 360
"""Pixels."""


class MemoryBars(QWidget):
    """Bars under one another on one scale, so that the eye compares lengths.

    Signals: `part_chosen(name)` when a part of a bar or of the legend was clicked.
    """

    part_chosen = Signal(str)

    def __init__(self, bar_height: int = 30) -> None:
        super().__init__()
        self._bars: tuple[BarState, ...] = ()
        self._capacity: Capacity | None = None
        self._height = bar_height
        self._hits: list[Hit] = []
        self._known_height = 0
        self._legend = MemoryLegend()
        policy = QSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        self.setMouseTracking(True)

    def show_bars(self, bars: Sequence[BarState], capacity: Capacity | None = None) -> None:
        self._bars, self._capacity = tuple(bars), capacity
        self._legend.show(next((bar.segments for bar in bars if bar.is_chosen), ()))
        self.setAccessibleName("; ".join(f"{bar.caption}: {bar.total_text}" for bar in bars))
        height = self.heightForWidth(self.width())
        if height != self._known_height:
            self._known_height = height
            self.updateGeometry()
        self.update()

    def sizeHint(self) -> QSize:
        return QSize(480, self.heightForWidth(max(NARROWEST, self.width())))

    def minimumSizeHint(self) -> QSize:
        return QSize(NARROWEST, self.sizeHint().height())

    def hasHeightForWidth(self) -> bool:
        return True

    def heightForWidth(self, width: int) -> int:
        legend = self._legend.height(width) if self._bars else 0
        return len(self._bars) * (self._height + BETWEEN) + SCALE_HEIGHT + legend

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        width = max(40.0, self.width() - TOTAL_WIDTH - CAPTION_WIDTH)
        scale = MemoryScale(self._bars, self._capacity, CAPTION_WIDTH, width)
        self._hits = []
        for index, bar in enumerate(self._bars):
            area = QRectF(CAPTION_WIDTH, index * (self._height + BETWEEN) + 6, width, self._height)
            self._hits += paint_bar(painter, bar, area, scale, TOTAL_WIDTH)
        bottom = len(self._bars) * (self._height + BETWEEN) + 2
        paint_ticks(painter, scale, bottom)
        if self._capacity is not None:
            paint_capacity(painter, scale, self._capacity, bottom)
        self._hits += self._legend.paint(painter, bottom + 42, self.width())

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ToolTip and isinstance(event, QHelpEvent):
            segment = self.part_at(QPointF(event.pos()))
            if segment is not None:
                QToolTip.showText(event.globalPos(), as_written(segment.tip or segment.text), self)
            else:
                QToolTip.hideText()
            return True
        return super().event(event)

    def part_at(self, point: QPointF) -> Segment | None:
        """The part that is painted there."""
        return next((segment for area, segment in self._hits if area.contains(point)), None)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        segment = self.part_at(event.position())
        if segment is not None:
            self.part_chosen.emit(segment.name)
