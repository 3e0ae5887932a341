"""A comparison as a file: the plot with its title above and the names of its lines below, as a picture or a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QRect, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFontMetrics, QImage, QImageWriter, QPaintDevice, QPainter, QPen
from PySide6.QtSvg import QSvgGenerator
from PySide6.QtWidgets import QGraphicsView

from app import theme

SHARPNESS = 2
"""Pixels of a picture for each of the screen, so that it can be printed."""
LINE, EDGE, SIGN = 20, 12, 26
"""Pixels: height of a line of text, room around all, and the sign before a name with its gap."""
Name = tuple[str, str, bool]
"""Title, colour, and whether it is drawn as dots."""


def save(path: Path, plot: QGraphicsView, title: str, names: Sequence[Name], *, is_drawing: bool) -> None:
    """As the plot is seen, whatever of it is hidden.

    Raises:
        OSError: it cannot be written.
    """
    path.write_bytes(b"")  # says at once if it cannot be written
    whole = QSize(plot.width() + 2 * EDGE, plot.height() + LINE * (1 + len(names)) + 3 * EDGE)
    if is_drawing:
        drawing = QSvgGenerator()
        drawing.setFileName(str(path))
        drawing.setSize(whole)
        # Axes are recorded for the screen's resolution, and are scaled where that of the device differs.
        drawing.setResolution(plot.logicalDpiX())
        drawing.setViewBox(QRect(0, 0, whole.width(), whole.height()))
        drawing.setTitle(title)
        _paint(drawing, whole, plot, title, names)
        return
    picture = QImage(whole * SHARPNESS, QImage.Format.Format_RGB32)
    picture.setDevicePixelRatio(SHARPNESS)
    _paint(picture, whole, plot, title, names)
    if not QImageWriter(str(path), b"png").write(picture):
        raise OSError(f"{path} cannot be written")


def _paint(
    device: QPaintDevice, whole: QSize, plot: QGraphicsView, title: str, names: Sequence[Name]
) -> None:
    t = theme.tokens()
    painter = QPainter(device)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.fillRect(QRect(0, 0, whole.width(), whole.height()), QColor(t.panel))
    painter.setFont(theme.font(theme.SMALL))
    painter.setPen(QColor(t.text))
    room = QRect(EDGE, EDGE, plot.width(), LINE)
    painter.drawText(room, Qt.AlignmentFlag.AlignVCenter, title)
    target = QRectF(EDGE, EDGE + LINE, plot.width(), plot.height())
    plot.scene().render(painter, target, QRectF(plot.viewport().rect()))
    for place, (name, colour, is_dots) in enumerate(names):
        top = whole.height() - EDGE - LINE * (len(names) - place)
        _paint_sign(painter, top + LINE // 2, colour, is_dots)
        painter.setPen(QColor(t.text))
        wide = plot.width() - SIGN
        shown = QFontMetrics(painter.font()).elidedText(name, Qt.TextElideMode.ElideMiddle, wide)
        painter.drawText(QRect(EDGE + SIGN, top, wide, LINE), Qt.AlignmentFlag.AlignVCenter, shown)
    painter.end()


def _paint_sign(painter: QPainter, middle: int, colour: str, is_dots: bool) -> None:
    """As the line itself is drawn."""
    if is_dots:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(colour))
        painter.drawEllipse(QRect(EDGE + 5, middle - 4, 8, 8))
    else:
        painter.setPen(QPen(QColor(colour), 2))
        painter.drawLine(EDGE, middle, EDGE + SIGN - 8, middle)
