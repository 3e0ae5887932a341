"""What lies over a window of time: the mouse zooms it, moves it and points into it."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QRectF, Qt
from PySide6.QtGui import QMouseEvent, QWheelEvent
from PySide6.QtWidgets import QWidget

from app.widgets.time_axis import TimeAxis

WHEEL_FACTOR = 1.25
LEFT, RIGHT, TOP, BOTTOM = 44.0, 8.0, 12.0, 18.0


class TimeSurface(QWidget):
    """Shows the window of `axis`, which others may share."""

    def __init__(self, axis: TimeAxis) -> None:
        super().__init__()
        self.axis = axis
        self._drag: float | None = None
        self.setMouseTracking(True)
        self.setCursor(Qt.CursorShape.CrossCursor)
        axis.pointed.connect(self.update)

    @property
    def _plot(self) -> QRectF:
        """Pixels, inside the labels."""
        return QRectF(
            LEFT, TOP, max(10.0, self.width() - LEFT - RIGHT), max(10.0, self.height() - TOP - BOTTOM)
        )

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
