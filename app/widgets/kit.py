"""Small parts that every screen is made of: labels, buttons, cards, notices, tables of facts."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from PySide6 import QtGui
from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QFontMetrics, QPainter, QPaintEvent, QResizeEvent
from PySide6.QtWidgets import (
    QBoxLayout,
    QButtonGroup,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLayout,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from app.presenters.in_window import in_window
from app.theme import GAP, GAP_WIDE

DIRECT = Qt.FindChildOption.FindDirectChildrenOnly
BUTTON_PADDING = 32
"""Pixels beside a button's caption: padding and border of the style sheet."""
SEPARATORS = re.compile(r"([/_\]=])")
ROUNDING = 2
"""Advances are rounded; a text that has exactly its advance may still be shortened."""


class Tipped(Protocol):
    """A widget, an action or an item of a table."""

    def setToolTip(self, text: str, /) -> None: ...


def as_written(text: str) -> str:
    """A text that Qt shows as it stands, though it looks like markup: names of models, runs and data are anybody's."""
    if not QtGui.Qt.mightBeRichText(text):
        return text
    return f'<p style="white-space: pre-wrap">{html.escape(text)}</p>'


def caption(text: str) -> str:
    """A text for a button or a menu, where a single `&` would mark a key."""
    return text.replace("&", "&&")


def set_tip(target: Tipped, text: str) -> None:
    """The one place that gives anything a tooltip: what it says is never taken for markup."""
    target.setToolTip(as_written(text))


def set_role(widget: QWidget, **properties: str) -> None:
    """Set style properties and have the style sheet looked at again; costs nothing when they are set already."""
    if all((widget.property(name) or "") == value for name, value in properties.items()):
        return
    for name, value in properties.items():
        widget.setProperty(name, value)
    widget.style().unpolish(widget)
    widget.style().polish(widget)


def label(text: str = "", role: str = "", *, wraps: bool = False, tone: str = "", selectable: bool = False) -> QLabel:  # fmt: skip
    found = QLabel(text)
    found.setTextFormat(Qt.TextFormat.PlainText)
    found.setWordWrap(wraps)
    if role:
        found.setProperty("role", role)
    if tone:
        found.setProperty("tone", tone)
    if selectable:
        found.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return found


def markup(text: str = "", role: str = "", *, wraps: bool = False) -> QLabel:
    """A label for signs in colours of our own: never for a text that comes from outside."""
    found = label(text, role, wraps=wraps)
    found.setTextFormat(Qt.TextFormat.RichText)
    return found


def button(
    text: str, on_click: Callable[[], object] | None = None, role: str = "", tip: str = ""
) -> QPushButton:
    found = QPushButton(text)
    found.setCursor(Qt.CursorShape.PointingHandCursor)
    found.setAccessibleName(text)
    if role:
        found.setProperty("role", role)
    if tip:
        set_tip(found, tip)
    if on_click is not None:
        found.clicked.connect(lambda *_: on_click())
    return found


def row(*items: QWidget | QLayout | None, gap: int = GAP) -> QHBoxLayout:
    """Side by side; None is a stretch."""
    return _fill(QHBoxLayout(), items, gap)  # type: ignore[return-value]


def column(*items: QWidget | QLayout | None, gap: int = GAP) -> QVBoxLayout:
    """One below the other; None is a stretch."""
    return _fill(QVBoxLayout(), items, gap)  # type: ignore[return-value]


def _fill(layout: QBoxLayout, items: Sequence[QWidget | QLayout | None], gap: int) -> QBoxLayout:
    layout.setSpacing(gap)
    layout.setContentsMargins(0, 0, 0, 0)
    for item in items:
        if item is None:
            layout.addStretch(1)
        elif isinstance(item, QLayout):
            layout.addLayout(item)
        else:
            layout.addWidget(item)
    return layout


def emptied(layout: QLayout) -> None:
    """Take everything out of `layout`; its widgets are deleted."""
    while layout.count():
        item = layout.takeAt(0)
        widget = item.widget() if item is not None else None
        if widget is not None:
            widget.hide()
            widget.deleteLater()


def boxed(layout: QLayout) -> QWidget:
    """A layout as a widget."""
    found = QWidget()
    found.setLayout(layout)
    return found


def framed(layout: QLayout, role: str) -> QFrame:
    """A layout in a frame that looks as its role says."""
    found = QFrame()
    found.setProperty("role", role)
    found.setLayout(layout)
    return found


class Card(QFrame):
    """A bordered panel with an optional heading; `body` takes the content."""

    def __init__(self, heading: str = "", *, margin: int = GAP_WIDE) -> None:
        super().__init__()
        self.setProperty("role", "card")
        self.body = QVBoxLayout(self)
        self.body.setContentsMargins(margin, margin, margin, margin)
        self.body.setSpacing(GAP)
        self.heading = label(heading, "heading", wraps=True)
        if heading:
            self.body.addWidget(self.heading)

    def add(self, *items: QWidget | QLayout) -> Card:
        for item in items:
            if isinstance(item, QLayout):
                self.body.addLayout(item)
            else:
                self.body.addWidget(item)
        return self


def widest_of(parent: QWidget) -> int:
    """What its widest child needs; 0 for one without children, as it is while Qt takes it apart. An exception in a function
    that Qt calls ends the program (Shiboken 6.11, storePythonOverrideErrorOrPrint)."""
    return max(
        (child.minimumSizeHint().width() for child in parent.findChildren(QWidget, options=DIRECT)), default=0
    )


class SideBySide(QWidget):
    """Columns side by side where there is room for them, else one below the other."""

    def __init__(self, *columns: QWidget, stretch: Sequence[int] = (), needs: int = 840) -> None:
        super().__init__()
        self._needs, self._parts = needs, columns
        self._columns = QBoxLayout(QBoxLayout.Direction.LeftToRight, self)
        self._columns.setContentsMargins(0, 0, 0, 0)
        self._columns.setSpacing(GAP_WIDE)
        for index, found in enumerate(columns):
            self._columns.addWidget(found, stretch[index] if stretch else 1)

    def minimumSizeHint(self) -> QSize:
        return QSize(widest_of(self), super().minimumSizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        has_room = self.width() >= self._needs
        way = QBoxLayout.Direction.LeftToRight if has_room else QBoxLayout.Direction.TopToBottom
        if self._columns.direction() != way:
            self._columns.setDirection(way)


class Elided(QLabel):
    """One line that ends in an ellipsis when there is no room; the whole text is its tooltip."""

    def __init__(
        self,
        text: str = "",
        role: str = "",
        mode: Qt.TextElideMode = Qt.TextElideMode.ElideRight,
        policy: QSizePolicy.Policy = QSizePolicy.Policy.Ignored,
    ) -> None:
        super().__init__()
        self._full, self.mode = "", mode
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setSizePolicy(policy, QSizePolicy.Policy.Preferred)
        if role:
            self.setProperty("role", role)
        self.setText(text)

    def setText(self, text: str) -> None:
        self._full = text
        super().setText(text)
        set_tip(self, text)

    def minimumSizeHint(self) -> QSize:
        return QSize(24, super().minimumSizeHint().height())

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setPen(self.palette().windowText().color())
        room = self.contentsRect()
        text = QFontMetrics(self.font()).elidedText(self._full, self.mode, room.width())
        painter.drawText(room, int(self.alignment()) or int(Qt.AlignmentFlag.AlignVCenter), text)


class ElidedButton(QPushButton):
    """A button that shortens its caption when there is no room; the whole text is its tooltip and its name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._full = ""
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.set_text(text)

    def set_text(self, text: str) -> None:
        if text != self._full:
            self._full = text
            set_tip(self, text)
            self.setAccessibleName(text)
            self._fit()
            self.updateGeometry()

    def minimumSizeHint(self) -> QSize:
        return QSize(60, super().minimumSizeHint().height())

    def sizeHint(self) -> QSize:
        wide = QFontMetrics(self.font()).horizontalAdvance(self._full) + BUTTON_PADDING + ROUNDING
        return QSize(wide, super().sizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        room = self.width() - BUTTON_PADDING
        self.setText(
            caption(QFontMetrics(self.font()).elidedText(self._full, Qt.TextElideMode.ElideRight, room))
        )


class Facts(QWidget):
    """Two columns, name and value. `set_rows` takes (name, value) or (name, value, tooltip)."""

    def __init__(self, name_width: int = 120) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(GAP_WIDE)
        self._grid.setVerticalSpacing(6)
        self._grid.setColumnMinimumWidth(0, name_width)
        self._grid.setColumnStretch(1, 1)
        self._cells: list[tuple[QLabel, QLabel]] = []

    def set_rows(self, rows: Sequence[tuple[str, ...]]) -> None:
        while len(self._cells) < len(rows):
            name, value = label(role="quiet"), label(wraps=True, selectable=True)
            name.setAlignment(Qt.AlignmentFlag.AlignTop)
            place = len(self._cells)
            self._grid.addWidget(name, place, 0)
            self._grid.addWidget(value, place, 1)
            self._cells.append((name, value))
        for index, (name, value) in enumerate(self._cells):
            is_used = index < len(rows)
            name.setVisible(is_used)
            value.setVisible(is_used)
            if is_used:
                found = rows[index]
                name.setText(found[0])
                value.setText(breakable(found[1]))
                set_tip(value, found[2] if len(found) > 2 else "")


def breakable(text: str) -> str:
    """Long paths and names may be broken after a separator."""
    return SEPARATORS.sub("\\1\u200b", text) if len(text) > 28 else text


class Notice(QFrame):
    """A sentence that matters, with at most two things to do about it. Hidden while it has no text."""

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "notice")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(12, 10, 12, 10)
        layout.setSpacing(12)
        self._text = label(wraps=True, selectable=True)
        self._hint = label(role="quiet", wraps=True, selectable=True)
        layout.addLayout(column(self._text, self._hint, gap=2), 1)
        self._actions = QHBoxLayout()
        layout.addLayout(self._actions)
        self.hide()

    def say(
        self, text: str, hint: str = "", tone: str = "accent", *actions: tuple[str, Callable[[], object]]
    ) -> None:
        """Show `text`; an empty one hides the notice."""
        emptied(self._actions)
        for caption, on_click in actions:
            self._actions.addWidget(button(caption, on_click))
        self._text.setText(in_window(text))
        self._hint.setText(in_window(hint))
        self._hint.setVisible(bool(hint))
        set_role(self, tone=tone)
        self.setVisible(bool(text))

    @property
    def text(self) -> str:
        return self._text.text()


class Segments(QWidget):
    """A few exclusive choices in a row. Signals: `chosen(str)`, only by the person."""

    chosen = Signal(str)

    def __init__(self, choices: Sequence[tuple[str, str]], tips: Sequence[str] = ()) -> None:
        super().__init__()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        self._group = QButtonGroup(self)
        self._buttons: dict[str, QToolButton] = {}
        for index, (value, caption) in enumerate(choices):
            found = QToolButton()
            found.setText(caption)
            found.setCheckable(True)
            found.setProperty("role", "segment")
            found.setCursor(Qt.CursorShape.PointingHandCursor)
            found.setAccessibleName(caption)
            if index < len(tips):
                set_tip(found, tips[index])
            found.clicked.connect(lambda *_, v=value: self.chosen.emit(v))
            self._group.addButton(found)
            self._buttons[value] = found
            layout.addWidget(found)
        layout.addStretch(1)

    def set_value(self, value: str) -> None:
        found = self._buttons.get(value)
        if found is not None:
            found.setChecked(True)

    def set_caption(self, value: str, text: str) -> None:
        self._buttons[value].setText(caption(text))
        self._buttons[value].setAccessibleName(text)

    def focus_on(self, value: str) -> None:
        """Give the keyboard to one of them."""
        if value in self._buttons:
            self._buttons[value].setFocus(Qt.FocusReason.OtherFocusReason)

    @property
    def value(self) -> str:
        return next((v for v, b in self._buttons.items() if b.isChecked()), "")


def line() -> QFrame:
    found = QFrame()
    found.setProperty("role", "line")
    return found
