"""The scale that memory bars share: how many bytes a pixel is, its ticks, and where the device's capacity lies on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from PySide6.QtCore import QRectF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QPainter, QPen

from app import theme
from app.presenters import numerals
from app.presenters.memory import BarState
from app.presenters.memory_words import Capacity
from app.presenters.words import gib_measured


@dataclass(frozen=True)
class MemoryScale:
    """Of `bars` on a device of `capacity`, from the pixel `left` on and `width` pixels wide."""

    bars: Sequence[BarState]
    capacity: Capacity | None
    left: float
    width: float

    @cached_property
    def whole_bytes(self) -> float:
        """The bytes at the right end: room for the solid bars and the device, faint ones may run out of it."""
        solid = [sum(s.bytes_ for s in bar.segments) for bar in self.bars if not bar.is_faint]
        device = [self.capacity.total_bytes] if self.capacity else []
        faint = [sum(s.bytes_ for s in bar.segments) for bar in self.bars if bar.is_faint]
        largest = max([*solid, 1])
        room = max([largest, *(d for d in device if d < 6 * largest)])
        return 1.06 * max([room, *(f for f in faint if f <= 2.2 * room)])

    @cached_property
    def per_byte(self) -> float:
        """Pixels."""
        return self.width / self.whole_bytes

    def x_of(self, count: float) -> float:
        """Where so many bytes end."""
        return self.left + count * self.per_byte

    def label_room(self, area: QRectF) -> QRectF:
        """The widest piece of `area` that no line of the capacity crosses."""
        sizes = (self.capacity.usable_bytes, self.capacity.total_bytes) if self.capacity else ()
        inside = sorted(x for x in map(self.x_of, sizes) if area.left() < x < area.right())
        edges = [area.left(), *inside, area.right()]
        start, end = max(pairwise(edges), key=lambda pair: pair[1] - pair[0])
        return QRectF(start, area.top(), end - start, area.height())


def paint_ticks(painter: QPainter, scale: MemoryScale, top: float) -> None:
    t = theme.tokens()
    painter.setFont(theme.font(theme.SMALL - 1))
    painter.setPen(QPen(QColor(t.line), 1))
    painter.drawLine(int(scale.left), int(top), int(scale.left + scale.width), int(top))
    step, unit, size = nice_step(scale.whole_bytes)
    value = 0.0
    while value * size <= scale.whole_bytes:
        x = scale.x_of(value * size)
        painter.setPen(QColor(t.line))
        painter.drawLine(int(x), int(top), int(x), int(top) + 4)
        painter.setPen(QColor(t.quiet))
        figure = numerals.short(value, is_grouped=True)
        text = numerals.measured(figure, unit) if value == 0 else figure
        painter.drawText(QRectF(x - 40, top + 5, 80, 16), Qt.AlignmentFlag.AlignHCenter, text)
        value += step


def paint_capacity(painter: QPainter, scale: MemoryScale, capacity: Capacity, bottom: float) -> None:
    """A line down to `bottom` where the usable bytes end, one where all do; the first is named, with an arrow if it lies outside."""
    text_colour, end = QColor(theme.tokens().text), scale.left + scale.width
    for size, style in (
        (capacity.usable_bytes, Qt.PenStyle.SolidLine),
        (capacity.total_bytes, Qt.PenStyle.DotLine),
    ):
        x = scale.x_of(size)
        if x <= end:
            painter.setPen(QPen(text_colour, 2 if style == Qt.PenStyle.SolidLine else 1, style))
            painter.drawLine(int(x), 0, int(x), int(bottom))
    x = scale.x_of(capacity.usable_bytes)
    painter.setFont(theme.font(theme.SMALL - 1))
    painter.setPen(text_colour)
    text = f"usable {gib_measured(capacity.usable_bytes, 1)}"
    wide = QFontMetricsF(painter.font()).horizontalAdvance(text)
    shown = text if x <= end else f"{text}  \u2192"
    place = QRectF(max(scale.left, min(end, x) - wide - 24), bottom + 18, wide + 24, 16)
    painter.drawText(place, Qt.AlignmentFlag.AlignRight, shown)


def nice_step(scale_bytes: float) -> tuple[float, str, int]:
    """(step, unit, bytes of the unit) giving five to ten ticks."""
    unit, size = ("GiB", 1024**3) if scale_bytes >= 1024**3 else ("MiB", 1024**2)
    whole = scale_bytes / size
    power = 1.0
    while power * 10 < whole:
        power *= 10
    while power > whole / 10:
        power /= 10
    for factor in (1, 2, 5, 10, 20):
        if whole / (power * factor) <= 9:
            return power * factor, unit, size
    return power * 50, unit, size
