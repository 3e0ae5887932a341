"""The rail: the pages, each with a mark that says done, needs attention, or running."""

from __future__ import annotations

from functools import partial

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QButtonGroup, QFrame, QPushButton, QSizePolicy, QVBoxLayout

from app.widgets.kit import button, label

PAGES = (
    ("model", "Model"),
    ("data", "Data"),
    ("memory", "Memory"),
    ("train", "Train"),
    ("try", "Try it"),
    ("export", "Export"),
    ("runs", "Runs"),
)
MARKS = {"attention": " \u25cf", "done": " \u2713", "running": " \u25b6"}
MARK_WORDS = {"attention": "needs attention", "done": "done", "running": "running"}


class Rail(QFrame):
    """Signals: `chosen(page)`, `help_asked`, `settings_asked`."""

    chosen = Signal(str)
    help_asked = Signal()
    settings_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "rail")
        self.setFixedWidth(136)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 16, 0, 12)
        layout.setSpacing(2)
        name = label("QLoRA Studio", "strong")
        name.setContentsMargins(15, 0, 8, 14)
        layout.addWidget(name)
        self._group = QButtonGroup(self)
        self.items: dict[str, QPushButton] = {}
        for number, (page, title) in enumerate(PAGES, start=1):
            layout.addWidget(self._make(page, title, number))
        layout.addStretch(1)
        for title, signal in (("Help", self.help_asked), ("Settings", self.settings_asked)):
            low = button(title, signal.emit, "link")
            low.setContentsMargins(12, 0, 0, 0)
            low.setStyleSheet("padding: 4px 15px")
            layout.addWidget(low)

    def show_page(self, page: str) -> None:
        self.items[page].setChecked(True)

    def set_mark(self, page: str, mark: str) -> None:
        """`mark`: attention, done, running, or empty."""
        title = dict(PAGES)[page]
        self.items[page].setText(title + MARKS.get(mark, ""))
        words = MARK_WORDS.get(mark)
        self.items[page].setAccessibleName(f"{title}, {words}" if words else title)

    def _make(self, page: str, title: str, number: int) -> QPushButton:
        found = QPushButton()
        found.setText(title)
        found.setCheckable(True)
        found.setProperty("role", "nav")
        found.setCursor(Qt.CursorShape.PointingHandCursor)
        found.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        found.setToolTip(f"Ctrl+{number}")
        found.setAccessibleName(title)
        found.clicked.connect(partial(self._choose, page))
        shortcut = QShortcut(QKeySequence(f"Ctrl+{number}"), self)
        shortcut.activated.connect(partial(self._choose, page))
        self._group.addButton(found)
        self.items[page] = found
        return found

    def _choose(self, page: str, *_: object) -> None:
        self.chosen.emit(page)
