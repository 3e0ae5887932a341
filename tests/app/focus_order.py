"""The order in which Tab goes through a painted window: as one reads, from the top to the bottom, in each part of it. And whether
one sees where one is."""

from __future__ import annotations

from itertools import pairwise

from PySide6.QtCore import QPoint, QRect, Qt
from PySide6.QtGui import QImage
from PySide6.QtWidgets import QApplication, QWidget

from app.widgets.tab_order import bring_into_sight, stops
from tests.app.geometry import describe

AROUND = 3
"""Pixels beside a control that tell of its focus too."""


def backwards(window: QWidget) -> list[str]:
    """Neighbours in Tab's order of which the later stands wholly above the earlier, or left of it in its line: they
    themselves, or the parts of the window in which they stand."""
    found = []
    for before, widget in pairwise(stops(window)):
        one, other = _parted(before, widget)
        if _is_before(_place(other, window), _place(one, window)):
            found.append(f"Tab goes from {describe(before)} back to {describe(widget)}")
    return found


def _parted(one: QWidget, other: QWidget) -> tuple[QWidget, QWidget]:
    """The largest parts, beside each other, of which each has one of them."""
    lines = [_line(one), _line(other)]
    for first, second in zip(*lines, strict=False):
        if first is not second:
            return first, second
    return one, other


def _line(widget: QWidget) -> list[QWidget]:
    """From the window down to it."""
    found = [widget]
    while not found[-1].isWindow():
        found.append(found[-1].parentWidget())
    return found[::-1]


def _place(widget: QWidget, window: QWidget) -> QRect:
    return QRect(widget.mapTo(window, QPoint(0, 0)), widget.size())


def _is_before(one: QRect, other: QRect) -> bool:
    is_one_line = one.top() <= other.center().y() <= one.bottom()
    return one.right() < other.left() if is_one_line else one.bottom() < other.top()


def unseen(window: QWidget) -> list[str]:
    """Controls that look with the focus as they do without it."""
    found = []
    for widget in stops(window):
        bring_into_sight(widget)
        widget.setFocus(Qt.FocusReason.TabFocusReason)
        QApplication.processEvents()
        place = _place(widget, window).adjusted(-AROUND, -AROUND, AROUND, AROUND)
        with_it = _picture(window, place)
        widget.clearFocus()
        if with_it == _picture(window, place):
            found.append(f"{describe(widget)} {widget.accessibleName()}")
    return found


def _picture(window: QWidget, place: QRect) -> QImage:
    return window.grab(place).toImage()
