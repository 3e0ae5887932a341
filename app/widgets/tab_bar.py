"""The headings over a run's tabs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QButtonGroup, QFrame, QHBoxLayout, QPushButton

from app.theme import GAP_PAGE
from app.widgets.kit import caption, set_tip

EDGE = 12
"""Padding of a heading: the words of the first stand where the text of the tabs begins."""


class TabBar(QFrame):
    """Signals: `chosen(heading)`."""

    chosen = Signal(str)

    def __init__(self, headings: Sequence[str]) -> None:
        super().__init__()
        self.setProperty("role", "tabs")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(GAP_PAGE - EDGE, 0, GAP_PAGE, 0)
        layout.setSpacing(0)
        self._group = QButtonGroup(self)
        self.items: dict[str, QPushButton] = {}
        self._marks: dict[str, str] = {}
        for heading in headings:
            found = QPushButton(caption(heading))
            found.setAccessibleName(heading)
            found.setCheckable(True)
            found.setProperty("role", "tab")
            found.setCursor(Qt.CursorShape.PointingHandCursor)
            found.clicked.connect(lambda *_, name=heading: self.chosen.emit(name))
            self._group.addButton(found)
            self.items[heading] = found
            layout.addWidget(found)
        layout.addStretch(1)

    def show_only(self, headings: Collection[str], chosen: str) -> None:
        """Those that the chosen run has, and which of them is in sight."""
        for heading, found in self.items.items():
            found.setVisible(heading in headings)
        self.items[chosen].setChecked(True)

    def set_mark(self, heading: str, words: str) -> None:
        """A dot and its words, such as "needs attention"; none when empty."""
        if self._marks.get(heading, "") != words:
            self._marks[heading] = words
            found = self.items[heading]
            found.setText(caption(heading) + (" \u25cf" if words else ""))
            found.setAccessibleName(f"{heading}, {words}" if words else heading)
            set_tip(found, words)
