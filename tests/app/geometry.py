"""Looks at a painted window for what spoils it: texts cut off, parts over each other, parts outside, controls without a name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from PySide6.QtCore import QPoint, QRect, Qt
from PySide6.QtGui import QFontMetrics
from PySide6.QtWidgets import (
    QAbstractButton,
    QCheckBox,
    QLabel,
    QLineEdit,
    QRadioButton,
    QScrollArea,
    QWidget,
)

from app.widgets.kit import Elided
from app.window import MainWindow


def visible(widget: QWidget) -> Iterator[QWidget]:
    """The widget and everything in it that can be seen; what is hidden is not even walked through."""
    yield widget
    for child in widget.children():
        if isinstance(child, QWidget) and child.isVisible() and not child.isWindow():
            yield from visible(child)


def problems_of(window: MainWindow) -> list[str]:
    seen = list(visible(window))
    checks: tuple[Callable[[Sequence[QWidget]], list[str]], ...] = (
        clipped,
        covered_or_outside,
        running_out,
        unnamed,
    )
    return [*(found for check in checks for found in check(seen)), *start_hidden(window)]


def clipped(widgets: Sequence[QWidget]) -> list[str]:
    """Labels and buttons whose text has less room than it needs, and neither wraps nor ends in an ellipsis."""
    found = []
    for widget in widgets:
        is_label = isinstance(widget, QLabel) and not isinstance(widget, Elided) and not widget.wordWrap()
        if not (is_label or isinstance(widget, QAbstractButton)) or not widget.text():
            continue
        has_more = isinstance(widget, QCheckBox | QRadioButton)  # its sign, beside the text
        is_rich = isinstance(widget, QLabel) and widget.textFormat() == Qt.TextFormat.RichText
        need = (
            widget.sizeHint().width()
            if is_rich or has_more
            else QFontMetrics(widget.font()).horizontalAdvance(widget.text().replace("&&", "&"))
        )
        if widget.width() + 1 < need:
            found.append(f"{describe(widget)}: {widget.width()} of {need} px")
    return found


def covered_or_outside(widgets: Sequence[QWidget]) -> list[str]:
    """Visible parts, laid out by one parent, that cover each other or reach over its edge. What is scrolled may."""
    found = []
    for parent in widgets:
        layout = parent.layout()
        if layout is None:
            continue
        places = [
            (c, c.geometry())
            for c in parent.children()
            if isinstance(c, QWidget) and c.isVisible() and not c.isWindow() and layout.indexOf(c) >= 0
        ]
        room = parent.rect().adjusted(-1, -1, 1, 1)
        found += [
            f"{describe(c)} at {at} in {room}"
            for c, at in places
            if not at.isEmpty() and not room.contains(at)
        ]
        for index, (one, at) in enumerate(places):
            for other, there in places[index + 1 :]:
                shared: QRect = at.intersected(there)
                if shared.width() > 1 and shared.height() > 1:
                    found.append(
                        f"{describe(one)} and {describe(other)} by {shared.width()} x {shared.height()} px"
                    )
    return found


def running_out(widgets: Sequence[QWidget]) -> list[str]:
    """Scrolled content that is wider than what can be seen of it."""
    found = []
    for area in widgets:
        content = area.widget() if isinstance(area, QScrollArea) else None
        if (
            content is not None
            and isinstance(area, QScrollArea)
            and content.width() > area.viewport().width() + 1
        ):
            found.append(f"{content.width()} px in {area.viewport().width()} px")
    return found


def unnamed(widgets: Sequence[QWidget]) -> list[str]:
    """What can be used but says nothing to a screen reader."""
    found = []
    for widget in widgets:
        if isinstance(widget, QLineEdit | QAbstractButton):
            text = widget.text() if isinstance(widget, QAbstractButton) else ""
            if not (widget.accessibleName() or text or widget.objectName().startswith("qt_")):
                found.append(describe(widget))
    return found


def start_hidden(window: MainWindow) -> list[str]:
    """Start of a draft, and Pause of a run that goes on in this window, must be in sight whatever is shown."""
    shown = window.studio.shown
    if not shown.is_draft and not (shown.is_own and shown.fold.is_live):
        return []
    wanted = (window.card.start, window.head.primary) if shown.is_draft else (window.head.pause,)
    for found in wanted:
        corner = QRect(found.mapTo(window, QPoint(0, 0)), found.size())
        if found.isVisible() and window.rect().contains(corner):
            return []
    return ["neither Start nor Pause can be seen"]


def describe(widget: QWidget) -> str:
    text = getattr(widget, "text", lambda: "")()
    return f"{type(widget).__name__}({str(text)[:40]!r})"
