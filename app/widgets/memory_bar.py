"""The memory bar: stacked parts on a shared scale, against what the GPU has. Painted by hand, no chart library."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from PySide6.QtCore import QEvent, QPoint, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QBrush, QColor, QFontMetricsF, QHelpEvent, QMouseEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from app import theme
from app.presenters import numerals
from app.presenters.memory import BarState, Segment
from app.presenters.memory_words import Capacity
from app.presenters.words import gib_figure
from app.widgets.kit import as_written

LABEL_PADDING = 6
LEGEND_ROW = 20
OUTLINED = "reserve"
"""The part that is no tensor's: drawn as an empty box."""
FAINTNESS = 0.45
ARROWS = 18
"""Pixels that the sign of a bar running out of the scale takes."""


class MemoryBars(QWidget):
    """Bars under one another on one scale, so that the eye compares lengths.

    Signals: `part_chosen(name)` when a part of a bar or of the legend was clicked.
    """

    part_chosen = Signal(str)

    CAPTION_WIDTH, TOTAL_WIDTH = 196, 92

    def __init__(self, bar_height: int = 30) -> None:
        super().__init__()
        self._bars: tuple[BarState, ...] = ()
        self._capacity: Capacity | None = None
        self._height = bar_height
        self._hits: list[tuple[QRectF, Segment]] = []
        self._known_height = 0
        self._legend: tuple[float, list[list[tuple[float, Segment]]]] = (-1.0, [])
        policy = QSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        self.setMouseTracking(True)

    def show_bars(self, bars: Sequence[BarState], capacity: Capacity | None = None) -> None:
        self._bars, self._capacity, self._legend = tuple(bars), capacity, (-1.0, [])
        words = "; ".join(f"{bar.caption}: {bar.total_text}" for bar in bars)
        self.setAccessibleName(words)
        height = self.heightForWidth(self.width())
        if height != self._known_height:
            self._known_height = height
            self.updateGeometry()
        self.update()

    def sizeHint(self) -> QSize:
        return QSize(480, self._bars_height() + 40 + self._legend_height())

    def minimumSizeHint(self) -> QSize:
        return QSize(360, self.sizeHint().height())

    def _bars_height(self) -> int:
        return len(self._bars) * (self._height + 14)

    def _legend_height(self) -> int:
        return LEGEND_ROW * len(self._legend_rows(max(360, self.width()))) if self._bars else 0

    def hasHeightForWidth(self) -> bool:
        return True

    def heightForWidth(self, width: int) -> int:
        rows = len(self._legend_rows(width)) if self._bars else 0
        return self._bars_height() + 40 + LEGEND_ROW * rows

    def _legend_rows(self, width: float) -> list[list[tuple[float, Segment]]]:
        """The parts of the chosen bar with their numbers, in rows of (x, part): what is too small for its label is
        named here."""
        if self._legend[0] == width:
            return self._legend[1]
        chosen = next((bar for bar in self._bars if bar.is_chosen), None)
        metrics = QFontMetricsF(theme.font(theme.SMALL))
        rows: list[list[tuple[float, Segment]]] = [[]]
        x = 0.0
        for segment in chosen.segments if chosen is not None else ():
            wide = metrics.horizontalAdvance(segment.text) + 34
            if x + wide > width and rows[-1]:
                rows.append([])
                x = 0.0
            rows[-1].append((x, segment))
            x += wide
        self._legend = (width, rows)
        return rows

    @property
    def scale_bytes(self) -> float:
        """The bytes at the right end: room for the solid bars and the device, faint ones may run out of it."""
        solid = [sum(s.bytes_ for s in bar.segments) for bar in self._bars if not bar.is_faint]
        device = [self._capacity.total_bytes] if self._capacity else []
        faint = [sum(s.bytes_ for s in bar.segments) for bar in self._bars if bar.is_faint]
        largest = max([*solid, 1])
        room = max([largest, *(d for d in device if d < 6 * largest)])
        return 1.06 * max([room, *(f for f in faint if f <= 2.2 * room)])

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        self._hits.clear()
        left, right = self.CAPTION_WIDTH, self.width() - self.TOTAL_WIDTH
        width = max(40.0, right - left)
        per_byte = width / self.scale_bytes
        for index, bar in enumerate(self._bars):
            top = index * (self._height + 14) + 6
            self._paint_bar(painter, bar, QRectF(left, top, width, self._height), per_byte)
        bottom = len(self._bars) * (self._height + 14) + 2
        self._paint_scale(painter, left, bottom, width, per_byte)
        if self._capacity is not None:
            self._paint_capacity(painter, left, bottom, width, per_byte)
        self._paint_legend(painter, bottom + 42)

    def _paint_legend(self, painter: QPainter, top: float) -> None:
        painter.setFont(theme.font(theme.SMALL))
        for index, found in enumerate(self._legend_rows(self.width())):
            y = top + index * LEGEND_ROW
            for x, segment in found:
                self._fill(painter, segment.name, QRectF(x, y + 3, 10, 10))
                painter.setPen(QColor(theme.tokens().quiet))
                painter.drawText(QRectF(x + 15, y, 400, 16), Qt.AlignmentFlag.AlignVCenter, segment.text)
                self._hits.append(
                    (
                        QRectF(x, y, 15 + QFontMetricsF(painter.font()).horizontalAdvance(segment.text), 16),
                        segment,
                    )
                )

    def _paint_bar(self, painter: QPainter, bar: BarState, area: QRectF, per_byte: float) -> None:
        t = theme.tokens()
        painter.setFont(theme.font(theme.NORMAL))
        painter.setPen(QColor(t.text if bar.is_chosen else t.quiet))
        if bar.is_chosen:
            font = painter.font()
            font.setWeight(font.Weight.DemiBold)
            painter.setFont(font)
        caption = QRectF(0, area.top(), area.left() - 12, area.height())
        painter.drawText(caption, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, bar.caption)
        x = area.left()
        for segment in bar.segments:
            wide = min(segment.bytes_ * per_byte, area.right() - x)
            if wide <= 0:
                continue
            place = QRectF(x, area.top(), wide, area.height())
            is_cut = wide + 0.5 < segment.bytes_ * per_byte
            room = self._label_room(
                place.adjusted(0, 0, -ARROWS, 0) if is_cut else place, area.left(), per_byte
            )
            self._paint_segment(painter, segment, place, room, is_faint=bar.is_faint)
            x += wide
        if sum(s.bytes_ for s in bar.segments) * per_byte > area.width() + 1:
            self._paint_runs_out(painter, area)
        painter.setFont(theme.font(theme.NORMAL))
        painter.setPen(QColor(t.text if not bar.is_faint else t.quiet))
        total = QRectF(area.right() + 8, area.top(), self.TOTAL_WIDTH - 8, area.height())
        painter.drawText(total, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignRight, bar.total_text)

    def _paint_segment(
        self, painter: QPainter, segment: Segment, area: QRectF, room: QRectF, *, is_faint: bool
    ) -> None:
        opacity = FAINTNESS if is_faint else 1.0
        painter.setOpacity(opacity)
        self._fill(painter, segment.name, area)
        if area.width() > 3:
            painter.setPen(QPen(QColor(theme.tokens().panel), 1))
            painter.drawLine(area.topRight(), area.bottomRight())
        painter.setOpacity(1.0)
        painter.setFont(theme.font(theme.SMALL))
        if QFontMetricsF(painter.font()).horizontalAdvance(segment.text) + 2 * LABEL_PADDING < room.width():
            painter.setPen(ink_on(segment.name, opacity))
            painter.drawText(room, Qt.AlignmentFlag.AlignCenter, segment.text)
        self._hits.append((area, segment))

    def _label_room(self, area: QRectF, left: float, per_byte: float) -> QRectF:
        """The widest piece of `area` that no line of the capacity crosses."""
        sizes = (self._capacity.usable_bytes, self._capacity.total_bytes) if self._capacity else ()
        inside = sorted(
            x for x in (left + size * per_byte for size in sizes) if area.left() < x < area.right()
        )
        edges = [area.left(), *inside, area.right()]
        start, end = max(pairwise(edges), key=lambda pair: pair[1] - pair[0])
        return QRectF(start, area.top(), end - start, area.height())

    def _fill(self, painter: QPainter, name: str, area: QRectF) -> None:
        if name == OUTLINED:
            painter.setPen(QPen(QColor(theme.tokens().quiet), 1))
            painter.drawRect(area.adjusted(0.5, 0.5, -0.5, -0.5))
            return
        painter.fillRect(area, theme.part_colour(name))
        if name in theme.HATCHED_PARTS:
            painter.fillRect(area, QBrush(QColor(theme.tokens().background), Qt.BrushStyle.BDiagPattern))

    def _paint_runs_out(self, painter: QPainter, area: QRectF) -> None:
        """The bar is longer than the scale: say so with an arrow."""
        painter.setPen(QPen(QColor(theme.tokens().text), 2))
        middle = area.center().y()
        for offset in (8.0, 2.0):
            tip = area.right() - offset
            painter.drawLine(QPoint(int(tip - 5), int(middle - 5)), QPoint(int(tip), int(middle)))
            painter.drawLine(QPoint(int(tip - 5), int(middle + 5)), QPoint(int(tip), int(middle)))

    def _paint_scale(self, painter: QPainter, left: float, top: float, width: float, per_byte: float) -> None:
        t = theme.tokens()
        painter.setFont(theme.font(theme.SMALL - 1))
        painter.setPen(QPen(QColor(t.line), 1))
        painter.drawLine(int(left), int(top), int(left + width), int(top))
        step, unit, size = nice_step(self.scale_bytes)
        value = 0.0
        while value * size <= self.scale_bytes:
            x = left + value * size * per_byte
            painter.setPen(QColor(t.line))
            painter.drawLine(int(x), int(top), int(x), int(top) + 4)
            painter.setPen(QColor(t.quiet))
            text = numerals.short(value, is_grouped=True) + (f" {unit}" if value == 0 else "")
            painter.drawText(QRectF(x - 40, top + 5, 80, 16), Qt.AlignmentFlag.AlignHCenter, text)
            value += step

    def _paint_capacity(
        self, painter: QPainter, left: float, bottom: float, width: float, per_byte: float
    ) -> None:
        assert self._capacity is not None
        t = theme.tokens()
        for size, style in (
            (self._capacity.usable_bytes, Qt.PenStyle.SolidLine),
            (self._capacity.total_bytes, Qt.PenStyle.DotLine),
        ):
            x = left + size * per_byte
            if x <= left + width:
                painter.setPen(QPen(QColor(t.text), 2 if style == Qt.PenStyle.SolidLine else 1, style))
                painter.drawLine(int(x), 0, int(x), int(bottom))
        x = left + self._capacity.usable_bytes * per_byte
        painter.setFont(theme.font(theme.SMALL - 1))
        painter.setPen(QColor(t.text))
        text = f"usable {gib_figure(self._capacity.usable_bytes, 1)} GiB"
        wide = QFontMetricsF(painter.font()).horizontalAdvance(text)
        end = min(left + width, x) if x <= left + width else left + width
        shown = text if x <= left + width else f"{text}  \u2192"
        painter.drawText(
            QRectF(max(left, end - wide - 24), bottom + 18, wide + 24, 16), Qt.AlignmentFlag.AlignRight, shown
        )

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


def ink_on(name: str, opacity: float = 1.0) -> QColor:
    """Black or white, whichever is read better on the part's colour over the panel."""
    panel = QColor(theme.tokens().panel)
    colour = panel if name == OUTLINED else theme.part_colour(name)
    mixed = [
        opacity * over + (1 - opacity) * under
        for over, under in zip(colour.getRgb()[:3], panel.getRgb()[:3], strict=True)  # type: ignore[index]
    ]
    is_light = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2] > 120
    return QColor("#14161A" if is_light else "#FFFFFF")


class UseBar(QWidget):
    """How full a memory is: one thin bar with a tick where the predicted peak lies."""

    def __init__(self, width: int = 160) -> None:
        super().__init__()
        self._share: float | None = None
        self._own: float = 0.0
        self._tick: float | None = None
        self.setFixedSize(width, 10)

    def show_use(self, share: float | None, own: float = 0.0, tick: float | None = None) -> None:
        """`share` of all that is used, `own` of it by this run, `tick` the predicted peak; all of the total."""
        self._share, self._own, self._tick = share, own, tick
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        t = theme.tokens()
        painter = QPainter(self)
        painter.fillRect(self.rect(), QColor(t.raised))
        if self._share is not None:
            painter.fillRect(
                QRectF(0, 0, self.width() * min(1.0, self._share), self.height()), QColor(t.quiet)
            )
            painter.fillRect(
                QRectF(0, 0, self.width() * min(1.0, self._own), self.height()), QColor(t.accent)
            )
        if self._tick is not None and self._tick <= 1:
            x = int(self.width() * self._tick)
            painter.fillRect(x - 1, 0, 2, self.height(), QColor(t.text))


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
