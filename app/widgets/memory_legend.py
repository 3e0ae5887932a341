"""The legend below memory bars: the parts of the chosen one with their numbers, in as many rows as they need."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QRectF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QPainter

from app import theme
from app.presenters.memory import Segment
from app.widgets.bar_painting import fill

ROW = 20


class MemoryLegend:
    """What is too small for its label in the bar is named here."""

    def __init__(self) -> None:
        self._segments: tuple[Segment, ...] = ()
        self._known: tuple[float, list[list[tuple[float, Segment]]]] = (-1.0, [])

    def show(self, segments: Sequence[Segment]) -> None:
        self._segments, self._known = tuple(segments), (-1.0, [])

    def height(self, width: float) -> int:
        """Pixels that its rows take."""
        return ROW * len(self.rows(width))

    def rows(self, width: float) -> list[list[tuple[float, Segment]]]:
        """Rows of (x, part)."""
        if self._known[0] == width:
            return self._known[1]
        metrics = QFontMetricsF(theme.font(theme.SMALL))
        rows: list[list[tuple[float, Segment]]] = [[]]
        x = 0.0
        for segment in self._segments:
            wide = metrics.horizontalAdvance(segment.text) + 34
            if x + wide > width and rows[-1]:
                rows.append([])
                x = 0.0
            rows[-1].append((x, segment))
            x += wide
        self._known = (width, rows)
        return rows

    def paint(self, painter: QPainter, top: float, width: float) -> list[tuple[QRectF, Segment]]:
        """Each part and where it can be pointed at."""
        painter.setFont(theme.font(theme.SMALL))
        metrics, hits = QFontMetricsF(painter.font()), []
        for index, found in enumerate(self.rows(width)):
            y = top + index * ROW
            for x, segment in found:
                fill(painter, segment.name, QRectF(x, y + 3, 10, 10))
                painter.setPen(QColor(theme.tokens().quiet))
                painter.drawText(QRectF(x + 15, y, 400, 16), Qt.AlignmentFlag.AlignVCenter, segment.text)
                hits.append((QRectF(x, y, 15 + metrics.horizontalAdvance(segment.text), 16), segment))
        return hits
