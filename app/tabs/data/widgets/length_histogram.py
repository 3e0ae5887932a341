"""How long the rows are, with the maximum as a line that can be dragged. Painted by hand, no chart library."""

from __future__ import annotations

import math

from PySide6.QtCore import QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import (
    QBrush,
    QColor,
    QFontMetricsF,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QPolygonF,
)
from PySide6.QtWidgets import QSizePolicy, QWidget

from app import theme
from app.presenters.words import count_text
from app.tabs.data.presenters.report import Lengths, keeps_text

LEFT, RIGHT, TOP, BOTTOM = 8, 12, 42, 36
"""In pixels around the bars. Above them are two lines: what they count, and what the maximum is, which may stand over any of them."""
GRIP = 8
SHORTEST = 8
MULTIPLE = 8


class LengthScale:
    """Tokens and pixels of one width; linear, or logarithmic where a few rows are far longer than the rest."""

    def __init__(self, lengths: Lengths, maximum: int, width: int) -> None:
        self.is_logarithmic = lengths.is_logarithmic
        first = next((start for start, _, rows in lengths.bars if rows > 0), 1)
        self._low = max(1, min(first, maximum) // 2)
        self.end = max(2 * SHORTEST, -(-max(lengths.longest, maximum) // MULTIPLE) * MULTIPLE)
        self._room = max(1.0, width - LEFT - RIGHT)

    def x_of(self, tokens: float) -> float:
        """Where a length stands, in pixels."""
        part = self._log(tokens) / self._log(self.end) if self.is_logarithmic else tokens / self.end
        return LEFT + min(1.0, max(0.0, part)) * self._room

    def tokens_at(self, x: float) -> int:
        """The length at a pixel, a multiple of eight."""
        part = min(1.0, max(0.0, (x - LEFT) / self._room))
        tokens = self._low * (self.end / self._low) ** part if self.is_logarithmic else part * self.end
        return max(SHORTEST, round(tokens / MULTIPLE) * MULTIPLE)

    def _log(self, tokens: float) -> float:
        return math.log(max(self._low, tokens) / self._low)

    def ticks(self) -> list[int]:
        if self.is_logarithmic:
            powers = [10**power for power in range(1 + int(math.log10(self.end)))]
            return [
                step * power
                for power in powers
                for step in (1, 2, 5)
                if self._low <= step * power <= self.end
            ]
        step = 10 ** int(math.log10(self.end))
        step = next(s for s in (step // 5, step // 2, step, 2 * step) if s and self.end / s <= 8)
        return list(range(0, self.end + 1, step))


class LengthHistogram(QWidget):
    """Signals: `maximum_moved(int)` while the line is dragged, `maximum_chosen(int)` when it is let go; in tokens."""

    maximum_moved = Signal(int)
    maximum_chosen = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self._lengths: Lengths | None = None
        self._maximum = 0
        self._is_dragging = False
        self.setMinimumHeight(206)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMouseTracking(True)
        self.setAccessibleName("Lengths of the rows, with the maximum")

    def show_lengths(self, lengths: Lengths) -> None:
        self._lengths = lengths
        if not self._is_dragging:
            self._maximum = lengths.maximum
        self.setAccessibleDescription(
            keeps_text(lengths, self._maximum) + ". Left and right move the maximum."
        )
        self.update()

    def sizeHint(self) -> QSize:
        return QSize(420, 216)

    @property
    def maximum(self) -> int:
        return self._maximum

    def x_of(self, tokens: float) -> float:
        """Where a length stands, in pixels."""
        return self._scale.x_of(tokens) if self._lengths is not None else 0.0

    @property
    def _scale(self) -> LengthScale:
        assert self._lengths is not None
        return LengthScale(self._lengths, self._maximum, self.width())

    # ------------------------------------------------------------ painting

    def paintEvent(self, event: QPaintEvent) -> None:
        if self._lengths is None:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(theme.font(theme.SMALL))
        self._paint_bars(painter, self._lengths)
        self._paint_axis(painter)
        self._paint_line(painter)

    def _paint_bars(self, painter: QPainter, lengths: Lengths) -> None:
        t = theme.tokens()
        highest = max((rows for _, _, rows in lengths.bars), default=0) or 1
        floor = self.height() - BOTTOM
        room = floor - TOP
        kept, lost = QColor(t.accent), QColor(t.line)
        for start, end, rows in lengths.bars:
            left, right = self.x_of(start), self.x_of(end + (0 if lengths.is_logarithmic else 1))
            high = room * rows / highest
            if rows > 0:
                high = max(high, 2.0)
            bar = QRectF(left + 0.5, floor - high, max(1.5, right - left - 1), high)
            painter.fillRect(bar, kept if end <= self._maximum else lost)
            if end > self._maximum:
                painter.fillRect(bar, QBrush(QColor(t.quiet), Qt.BrushStyle.BDiagPattern))
        painter.setPen(QColor(t.quiet))
        painter.drawText(QPointF(LEFT, 14), f"rows (highest bar {count_text(round(highest))})")

    def _paint_axis(self, painter: QPainter) -> None:
        t = theme.tokens()
        floor = self.height() - BOTTOM
        painter.setPen(QPen(QColor(t.line), 1))
        painter.drawLine(QPointF(LEFT, floor), QPointF(self.width() - RIGHT, floor))
        painter.setPen(QColor(t.quiet))
        metrics = QFontMetricsF(painter.font())
        taken = -1.0
        for tokens in self._scale.ticks():
            text, x = count_text(tokens), self.x_of(tokens)
            wide = metrics.horizontalAdvance(text)
            left = min(max(0.0, x - wide / 2), self.width() - wide)
            if left > taken:
                painter.drawLine(QPointF(x, floor), QPointF(x, floor + 4))
                painter.drawText(QPointF(left, floor + 16), text)
                taken = left + wide + 12
        scale = "tokens in a row, logarithmic" if self._scale.is_logarithmic else "tokens in a row"
        painter.drawText(QPointF(self.width() - RIGHT - metrics.horizontalAdvance(scale), floor + 31), scale)

    def _paint_line(self, painter: QPainter) -> None:
        t = theme.tokens()
        x, floor = self.x_of(self._maximum), self.height() - BOTTOM
        painter.setPen(QPen(QColor(t.warning if self.hasFocus() or self._is_dragging else t.text), 2))
        painter.drawLine(QPointF(x, TOP - 4), QPointF(x, floor))
        painter.setBrush(painter.pen().color())
        painter.drawPolygon(
            QPolygonF([QPointF(x - 6, TOP - 6), QPointF(x + 6, TOP - 6), QPointF(x, TOP + 3)])
        )
        text = f"maximum {count_text(self._maximum)}"
        wide = QFontMetricsF(painter.font()).horizontalAdvance(text)
        left = x - wide - 12 if x + wide + 12 > self.width() else x + 10
        painter.setPen(QColor(t.text))
        painter.drawText(QPointF(max(0.0, left), TOP - 8), text)

    # ------------------------------------------------------------ moving the line

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton and self._lengths is not None:
            self._is_dragging = True
            self._move(self._scale.tokens_at(event.position().x()))

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        is_near = abs(event.position().x() - self.x_of(self._maximum)) <= GRIP
        self.setCursor(
            Qt.CursorShape.SplitHCursor if is_near or self._is_dragging else Qt.CursorShape.ArrowCursor
        )
        if self._is_dragging:
            self._move(self._scale.tokens_at(event.position().x()))

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        if self._is_dragging:
            self._is_dragging = False
            self.maximum_chosen.emit(self._maximum)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        tenth = max(MULTIPLE, int(self._scale.end / 10) // MULTIPLE * MULTIPLE)
        steps = {
            Qt.Key.Key_Left: -MULTIPLE, Qt.Key.Key_Right: MULTIPLE, Qt.Key.Key_PageDown: -tenth, Qt.Key.Key_PageUp: tenth,
        }  # fmt: skip
        key = Qt.Key(event.key())
        if self._lengths is None or key not in (*steps, Qt.Key.Key_Return, Qt.Key.Key_Enter):
            super().keyPressEvent(event)
        elif key in steps:
            self._move(max(SHORTEST, self._maximum + steps[key]))
        else:
            self.maximum_chosen.emit(self._maximum)

    def _move(self, maximum: int) -> None:
        if maximum != self._maximum:
            self._maximum = maximum
            self.update()
            self.maximum_moved.emit(maximum)
