"""The order in which Tab goes through a painted window: as one reads, from the top to the bottom, in each part of it."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QPoint, QRect, Qt
from PySide6.QtWidgets import QWidget

from tests.app.geometry import describe


def backwards(window: QWidget, widgets: Sequence[QWidget]) -> list[str]:
    """Neighbours in Tab's order with one parent, of which the later stands wholly above the earlier, or left of it in its line."""
    stops = {w for w in widgets if w.isEnabled() and w.focusPolicy() & Qt.FocusPolicy.TabFocus}
    chain, at = [window], window.nextInFocusChain()
    while at is not window:
        chain.append(at)
        at = at.nextInFocusChain()
    last: dict[QWidget, QWidget] = {}
    found = []
    for widget in (w for w in chain if w in stops):
        before = last.get(widget.parentWidget())
        if before is not None and _is_before(_place(widget, window), _place(before, window)):
            found.append(f"Tab goes from {describe(before)} back to {describe(widget)}")
        last[widget.parentWidget()] = widget
    return found


def _place(widget: QWidget, window: QWidget) -> QRect:
    return QRect(widget.mapTo(window, QPoint(0, 0)), widget.size())


def _is_before(one: QRect, other: QRect) -> bool:
    is_one_line = one.top() <= other.center().y() <= one.bottom()
    return one.right() < other.left() if is_one_line else one.bottom() < other.top()
