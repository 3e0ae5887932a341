"""How one memory bar is painted: its caption, its parts with what is written on them, its total."""

from __future__ import annotations

from PySide6.QtCore import QPoint, QRectF, Qt
from PySide6.QtGui import QBrush, QColor, QFont, QFontMetricsF, QPainter, QPen

from app import theme
from app.presenters.memory import BarState, Segment
from app.widgets.memory_scale import MemoryScale

LABEL_PADDING = 6
OUTLINED = "reserve"
"""The part that is no tensor's: drawn as an empty box."""
FAINTNESS = 0.45
ARROWS = 18
"""Pixels that the sign of a bar running out of the scale takes."""
LEFT_MIDDLE = Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft
RIGHT_MIDDLE = Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignRight
Hit = tuple[QRectF, Segment]


def paint_bar(
    painter: QPainter, bar: BarState, area: QRectF, scale: MemoryScale, total_width: float
) -> list[Hit]:
    """In `area`, with the caption left of it and the total right of it; each part and where it is."""
    t = theme.tokens()
    weight = QFont.Weight.DemiBold if bar.is_chosen else QFont.Weight.Normal
    painter.setFont(theme.font(theme.NORMAL, weight))
    painter.setPen(QColor(t.text if bar.is_chosen else t.quiet))
    painter.drawText(QRectF(0, area.top(), area.left() - 12, area.height()), LEFT_MIDDLE, bar.caption)
    hits = _paint_segments(painter, bar, area, scale)
    painter.setFont(theme.font(theme.NORMAL))
    painter.setPen(QColor(t.text if not bar.is_faint else t.quiet))
    total = QRectF(area.right() + 8, area.top(), total_width - 8, area.height())
    painter.drawText(total, RIGHT_MIDDLE, bar.total_text)
    return hits


def _paint_segments(painter: QPainter, bar: BarState, area: QRectF, scale: MemoryScale) -> list[Hit]:
    x, hits = area.left(), []
    for segment in bar.segments:
        whole = segment.bytes_ * scale.per_byte
        wide = min(whole, area.right() - x)
        if wide <= 0:
            continue
        place = QRectF(x, area.top(), wide, area.height())
        is_cut = wide + 0.5 < whole
        room = scale.label_room(place.adjusted(0, 0, -ARROWS, 0) if is_cut else place)
        _paint_segment(painter, segment, place, room, FAINTNESS if bar.is_faint else 1.0)
        hits.append((place, segment))
        x += wide
    if sum(segment.bytes_ for segment in bar.segments) * scale.per_byte > area.width() + 1:
        _paint_runs_out(painter, area)
    return hits


def _paint_segment(painter: QPainter, segment: Segment, area: QRectF, room: QRectF, opacity: float) -> None:
    painter.setOpacity(opacity)
    fill(painter, segment.name, area)
    if area.width() > 3:
        painter.setPen(QPen(QColor(theme.tokens().panel), 1))
        painter.drawLine(area.topRight(), area.bottomRight())
    painter.setOpacity(1.0)
    painter.setFont(theme.font(theme.SMALL))
    if QFontMetricsF(painter.font()).horizontalAdvance(segment.text) + 2 * LABEL_PADDING < room.width():
        painter.setPen(ink_on(segment.name, opacity))
        painter.drawText(room, Qt.AlignmentFlag.AlignCenter, segment.text)


def _paint_runs_out(painter: QPainter, area: QRectF) -> None:
    """The bar is longer than the scale: say so with an arrow."""
    painter.setPen(QPen(QColor(theme.tokens().text), 2))
    middle = area.center().y()
    for offset in (8.0, 2.0):
        tip = area.right() - offset
        painter.drawLine(QPoint(int(tip - 5), int(middle - 5)), QPoint(int(tip), int(middle)))
        painter.drawLine(QPoint(int(tip - 5), int(middle + 5)), QPoint(int(tip), int(middle)))


def fill(painter: QPainter, name: str, area: QRectF) -> None:
    """With the part's colour, hatched or as an empty box."""
    if name == OUTLINED:
        painter.setPen(QPen(QColor(theme.tokens().quiet), 1))
        painter.drawRect(area.adjusted(0.5, 0.5, -0.5, -0.5))
        return
    painter.fillRect(area, theme.part_colour(name))
    if name in theme.HATCHED_PARTS:
        painter.fillRect(area, QBrush(QColor(theme.tokens().background), Qt.BrushStyle.BDiagPattern))


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
