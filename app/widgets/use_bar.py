"""How full a memory is, as one thin bar."""

from __future__ import annotations

from PySide6.QtCore import QRectF
from PySide6.QtGui import QColor, QPainter, QPaintEvent
from PySide6.QtWidgets import QWidget

from app import theme


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
