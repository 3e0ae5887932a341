"""The rail: the pages, each with a mark that says done, needs attention, or running. In a narrow window only icons are left."""

from __future__ import annotations

from functools import partial

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QIcon, QKeySequence, QShortcut
from PySide6.QtWidgets import QButtonGroup, QFrame, QPushButton, QSizePolicy, QVBoxLayout

from app.widgets.kit import label, set_role, set_tip
from qlora_engine import paths

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
WIDE, NARROW = 148, 68
"""Pixels: with words, and with icons alone beside their marks."""


class Rail(QFrame):
    """Signals: `chosen(page)`, `help_asked`, `settings_asked`."""

    chosen = Signal(str)
    help_asked = Signal()
    settings_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "rail")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 16, 0, 12)
        layout.setSpacing(2)
        self._brand = label("QLoRA Studio", "strong")
        self._brand.setContentsMargins(15, 0, 4, 14)
        layout.addWidget(self._brand)
        self._group = QButtonGroup(self)
        self.items: dict[str, QPushButton] = {}
        self._lower: list[tuple[QPushButton, str]] = []
        self._marks: dict[str, str] = {}
        self._is_narrow = False
        for number, (page, title) in enumerate(PAGES, start=1):
            layout.addWidget(self._page_item(page, title, number))
        layout.addStretch(1)
        for name, title, signal in (("help", "Help", self.help_asked), ("settings", "Settings", self.settings_asked)):  # fmt: skip
            found = _item(name, title)
            found.clicked.connect(lambda *_, ask=signal: ask.emit())
            self._lower.append((found, title))
            layout.addWidget(found)
        self.set_narrow(False)

    def show_page(self, page: str) -> None:
        self.items[page].setChecked(True)

    def set_mark(self, page: str, mark: str) -> None:
        """`mark`: attention, done, running, or empty."""
        if self._marks.get(page) != mark:
            self._marks[page] = mark
            self._caption(page)

    def set_narrow(self, is_narrow: bool) -> None:
        """Icons alone, or with words."""
        self._is_narrow = is_narrow
        set_role(self, fold="narrow" if is_narrow else "wide")
        self.setFixedWidth(NARROW if is_narrow else max(WIDE, self._brand.sizeHint().width()))
        self._brand.setVisible(not is_narrow)
        for page in self.items:
            self._caption(page)
        for found, title in self._lower:
            found.setText("" if is_narrow else title)

    def _caption(self, page: str) -> None:
        title, mark = dict(PAGES)[page], self._marks.get(page, "")
        words = MARK_WORDS.get(mark)
        name = f"{title}, {words}" if words else title
        found = self.items[page]
        sign = MARKS.get(mark, "")
        found.setText(sign.strip() if self._is_narrow else title + sign)
        found.setAccessibleName(name)
        key = f"Ctrl+{list(self.items).index(page) + 1}"
        set_tip(found, f"{name} ({key})" if self._is_narrow or words else key)

    def _page_item(self, page: str, title: str, number: int) -> QPushButton:
        found = _item(page, title)
        found.setCheckable(True)
        found.clicked.connect(partial(self._choose, page))
        shortcut = QShortcut(QKeySequence(f"Ctrl+{number}"), self)
        shortcut.activated.connect(partial(self._choose, page))
        self._group.addButton(found)
        self.items[page] = found
        return found

    def _choose(self, page: str, *_: object) -> None:
        self.chosen.emit(page)


def _item(name: str, title: str) -> QPushButton:
    found = QPushButton(QIcon(str(paths.resources_dir() / "icons" / f"page-{name}.svg")), title)
    found.setIconSize(QSize(20, 20))
    found.setProperty("role", "nav")
    found.setCursor(Qt.CursorShape.PointingHandCursor)
    found.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    found.setAccessibleName(title)
    set_tip(found, title)
    return found
