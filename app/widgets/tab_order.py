"""The order in which Tab goes through a window: as one reads it. Qt's own goes by when a part was made, and many are made late."""

from __future__ import annotations

from collections.abc import Iterator

from PySide6.QtCore import Qt
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractScrollArea,
    QAbstractSlider,
    QComboBox,
    QDialog,
    QGridLayout,
    QLayout,
    QLineEdit,
    QScrollArea,
    QSplitter,
    QWidget,
)

WHOLE = (QAbstractButton, QAbstractScrollArea, QAbstractSlider, QComboBox, QLineEdit)
"""Controls whose own parts are nobody's stop; a page that scrolls is none of them."""


def stops(window: QWidget) -> list[QWidget]:
    """What Tab comes to of what is in sight, in its order."""
    return [widget for widget in _read(window) if _is_stop(widget)]


def move_on(window: QWidget, *, forwards: bool) -> bool:
    """Give the keyboard to the next stop, or the one before, and bring it into sight; False where there is none."""
    parts = list(_read(window))
    at = window.focusWidget()
    place = parts.index(at) if at in parts else -1
    before, after = parts[: max(0, place)], parts[place + 1 :]
    way = [*after, *before] if forwards else [*before[::-1], *after[::-1]]
    target = next((widget for widget in way if _is_stop(widget)), None)
    if target is None:
        return False
    reason = Qt.FocusReason.TabFocusReason if forwards else Qt.FocusReason.BacktabFocusReason
    target.setFocus(reason)
    bring_into_sight(target)
    return True


def bring_into_sight(widget: QWidget) -> None:
    """Scroll whatever it stands in to it."""
    around = widget.parentWidget()
    while around is not None:
        if isinstance(around, QScrollArea):
            around.ensureWidgetVisible(widget)
        around = around.parentWidget()


class OrderedDialog(QDialog):
    """One through which Tab goes as one reads."""

    def focusNextPrevChild(self, next: bool) -> bool:  # noqa: A002 - Qt's own name
        return move_on(self, forwards=next)


def _is_stop(widget: QWidget) -> bool:
    """A page that scrolls is one only where nothing in it is: from whatever is, the keys that scroll come to it as well."""
    if isinstance(widget, QScrollArea) and not _wants_keys(widget):
        return False
    return widget.isEnabled() and bool(widget.focusPolicy() & Qt.FocusPolicy.TabFocus)


def _wants_keys(area: QScrollArea) -> bool:
    inside = (part for part in _read(area) if part is not area)
    return area.verticalScrollBar().maximum() > 0 and not any(_is_stop(part) for part in inside)


def _read(widget: QWidget) -> Iterator[QWidget]:
    """The widget, then what is in it, from the first to the last."""
    yield widget
    if isinstance(widget, WHOLE) and not isinstance(widget, QScrollArea):
        return
    for child in _parts(widget):
        if child.isVisible() and not child.isWindow():
            yield from _read(child)


def _parts(widget: QWidget) -> list[QWidget]:
    """Its children: as a layout or a splitter has them, then those that no layout places."""
    layout = widget.layout()
    placed = list(_placed(layout)) if layout is not None else []
    if isinstance(widget, QSplitter):
        panes = (widget.widget(place) for place in range(widget.count()))
        placed = [pane for pane in panes if pane is not None]
    known = set(placed)
    return [*placed, *(c for c in widget.children() if isinstance(c, QWidget) and c not in known)]


def _placed(layout: QLayout) -> Iterator[QWidget]:
    for place in _places(layout):
        item = layout.itemAt(place)
        inner, widget = (item.layout(), item.widget()) if item is not None else (None, None)
        if inner is not None:
            yield from _placed(inner)
        elif widget is not None:
            yield widget


def _places(layout: QLayout) -> list[int]:
    """Of its items in reading order; a grid is filled in any."""
    places = range(layout.count())
    if isinstance(layout, QGridLayout):
        return sorted(places, key=lambda place: layout.getItemPosition(place)[:2])  # type: ignore[index]
    return list(places)
