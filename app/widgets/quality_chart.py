"""The error of every linear layer along the depth of the model, one colour and shape per way to store it.

Painted by hand: dots for modules, a line through each layer's mean, numbered rings around the worst.
"""

from __future__ import annotations

import math

from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QMouseEvent, QPainter, QPaintEvent, QPen, QPolygonF
from PySide6.QtWidgets import QSizePolicy, QToolTip, QWidget

from app import theme
from app.presenters import numerals
from app.presenters.quality import Dot, QualityPicture, Series
from app.widgets.kit import as_written

COLOURS = {"nf4": "#0072B2", "fp4": "#E69F00", "int4": "#CC79A7"}
"""Okabe and Ito's, one each; on a dark ground NF4 takes the lighter blue of the set."""
DARK_BLUE_INSTEAD = "#56B4E9"
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 34, 40
RADIUS = 2.6
RING = 7.0
REACH = 12.0
"""Pixels within which a dot is what the pointer means."""


class QualityChart(QWidget):
    """`show_picture` paints; the dot under the pointer tells its module and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._picture: QualityPicture | None = None
        self.setMinimumHeight(240)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setMouseTracking(True)

    def sizeHint(self) -> QSize:
        return QSize(560, 260)

    def show_picture(self, picture: QualityPicture | None) -> None:
        if picture != self._picture:
            self._picture = picture
            self.setAccessibleName(picture.summary if picture is not None else "")
            self.update()

    def place_of(self, dot: Dot) -> QPointF:
        """Where a dot is painted."""
        assert self._picture is not None
        area = self._area()
        steps = max(1, self._picture.layers - 1)
        x = area.center().x() if self._picture.layers == 1 else area.left() + area.width() * dot.layer / steps
        return QPointF(x, area.bottom() - area.height() * dot.error / self._top)

    def dot_at(self, point: QPointF) -> Dot | None:
        """The nearest dot within reach; of dots that cover each other the worst, which carries a ring."""
        found: list[tuple[float, int, Dot]] = []
        for place, series in enumerate(self._picture.series if self._picture else ()):
            for dot in series.dots:
                off = self.place_of(dot) - point
                distance = math.hypot(off.x(), off.y())
                if distance <= REACH:
                    found.append((round(distance), place, dot))
        return min(found, key=lambda one: (one[0], not one[2].rank, one[1]))[2] if found else None

    @property
    def _top(self) -> float:
        return 1.12 * max(self._picture.top if self._picture else 0.0, 1e-6)

    def _area(self) -> QRectF:
        return QRectF(LEFT, TOP, max(40, self.width() - LEFT - RIGHT), max(40, self.height() - TOP - BOTTOM))

    def paintEvent(self, event: QPaintEvent) -> None:
        if self._picture is None:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(theme.font(theme.SMALL))
        area = self._area()
        self._paint_legend(painter)
        self._paint_scales(painter, area, self._picture)
        for series in reversed(self._picture.series):
            self._paint_series(painter, series)
        for series in self._picture.series:
            self._paint_rings(painter, series)

    def _paint_legend(self, painter: QPainter) -> None:
        x = float(LEFT)
        for series in self._picture.series if self._picture else ():
            draw_mark(painter, series.name, QPointF(x + 5, 11), 4.0)
            painter.setPen(QColor(theme.tokens().text))
            wide = QFontMetricsF(painter.font()).horizontalAdvance(series.title)
            painter.drawText(QRectF(x + 15, 2, wide + 4, 18), Qt.AlignmentFlag.AlignVCenter, series.title)
            x += wide + 36

    def _paint_scales(self, painter: QPainter, area: QRectF, picture: QualityPicture) -> None:
        t = theme.tokens()
        step = nice_share(self._top)
        for number in range(int(self._top / step) + 1):
            y = area.bottom() - area.height() * number * step / self._top
            painter.setPen(QPen(QColor(t.line), 1))
            painter.drawLine(QPointF(area.left(), y), QPointF(area.right(), y))
            painter.setPen(QColor(t.quiet))
            right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
            painter.drawText(
                QRectF(0, y - 8, LEFT - 8, 16),
                right,
                numerals.measured(numerals.short(100 * number * step), "%"),
            )
        for layer in range(0, picture.layers, layer_step(picture.layers)):
            x = self.place_of(Dot(layer, 0.0, "")).x()
            painter.drawText(
                QRectF(x - 30, area.bottom() + 4, 60, 16), Qt.AlignmentFlag.AlignHCenter, f"{layer}"
            )
        painter.drawText(
            QRectF(area.left(), area.bottom() + 20, area.width(), 16), Qt.AlignmentFlag.AlignHCenter, "layer"
        )

    def _paint_series(self, painter: QPainter, series: Series) -> None:
        places = [self.place_of(Dot(layer, error, "")) for layer, error in series.line]
        painter.setPen(QPen(colour(series.name), 1.4))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawPolyline(QPolygonF(places))
        painter.setOpacity(0.75)
        for dot in series.dots:
            draw_mark(painter, series.name, self.place_of(dot), RADIUS)
        painter.setOpacity(1.0)

    def _paint_rings(self, painter: QPainter, series: Series) -> None:
        """The worst, numbered as in the list below; rings that touch share one line of numbers."""
        groups: list[tuple[QPointF, list[int]]] = []
        rings: list[QRectF] = []
        painter.setPen(QPen(QColor(theme.tokens().text), 1.4))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        for dot in sorted((dot for dot in series.dots if dot.rank), key=lambda dot: dot.rank):
            place = self.place_of(dot)
            painter.drawEllipse(place, RING, RING)
            rings.append(QRectF(place.x() - RING, place.y() - RING, 2 * RING, 2 * RING))
            near = next((ranks for at, ranks in groups if (at - place).manhattanLength() < 2.5 * RING), None)
            if near is None:
                groups.append((place, [dot.rank]))
            else:
                near.append(dot.rank)
        for place, ranks in groups:
            rings.append(self._paint_ranks(painter, place, ", ".join(map(str, ranks)), rings))

    def _paint_ranks(self, painter: QPainter, place: QPointF, text: str, taken: list[QRectF]) -> QRectF:
        """Beside, below or above the ring, where nothing else is marked; the place that it takes."""
        wide = QFontMetricsF(painter.font()).horizontalAdvance(text) + 2
        size = QRectF(0, 0, wide, 14)
        right, left = place.x() + RING + 3, place.x() - RING - wide - 3
        choices = [size.translated(x, y) for y in (place.y() - 15, place.y() + 2) for x in (right, left)]
        inside = [choice for choice in choices if choice.left() >= 0 and choice.right() <= self.width()]
        free = [choice for choice in inside if not any(choice.intersects(other) for other in taken)]
        found = (free or inside or choices)[0]
        ground = QColor(theme.tokens().panel)
        ground.setAlphaF(0.8)
        painter.fillRect(found, ground)
        painter.setPen(QColor(theme.tokens().text))
        painter.drawText(found, Qt.AlignmentFlag.AlignVCenter, text)
        return found

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        dot = self.dot_at(event.position())
        if dot is None:
            QToolTip.hideText()
        else:
            QToolTip.showText(event.globalPosition().toPoint(), as_written(dot.tip), self)

    def leaveEvent(self, event: QEvent) -> None:
        QToolTip.hideText()
        super().leaveEvent(event)


def colour(name: str) -> QColor:
    """A series' colour on the ground of the theme in use."""
    return QColor(DARK_BLUE_INSTEAD if name == "nf4" and theme.tokens().is_dark else COLOURS[name])


def draw_mark(painter: QPainter, name: str, place: QPointF, radius: float) -> None:
    """A disc, a square or a triangle: shapes tell the series apart without their colour."""
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(colour(name))
    if name == "nf4":
        painter.drawEllipse(place, radius, radius)
    elif name == "fp4":
        painter.drawRect(QRectF(place.x() - radius, place.y() - radius, 2 * radius, 2 * radius))
    else:
        corners = [QPointF(0, -radius * 1.25), QPointF(radius * 1.1, radius), QPointF(-radius * 1.1, radius)]
        painter.drawPolygon(QPolygonF([place + corner for corner in corners]))


def nice_share(top: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that gives three to seven lines up to `top`."""
    power = 10.0 ** math.floor(math.log10(top))
    return next(power * factor for factor in (0.1, 0.2, 0.5, 1.0, 2.0) if top / (power * factor) <= 6.5)


def layer_step(layers: int) -> int:
    """Every how many layers a number stands: about ten of them."""
    return next((step for step in (1, 2, 5, 10, 20, 50) if layers / step <= 11), 100)
