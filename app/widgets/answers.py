"""Who answers, side by side: one column each, and as many in a row as can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtCore import Qt
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QGridLayout, QSizePolicy, QWidget

from app.theme import GAP
from app.widgets.kit import Card, Elided
from app.widgets.transcript import Transcript, Turn

COLUMN_WIDTH = 180
"""Pixels below which an answer cannot be read well beside another."""
MOST_ROWS = 2


@dataclass(frozen=True)
class Side:
    """One column."""

    name: str
    title: str
    detail: str
    turns: tuple[Turn, ...]


class AnswerColumns(QWidget):
    """Transcripts by side. Three columns in a row where there is room, else they wrap."""

    def __init__(self) -> None:
        super().__init__()
        self.views: dict[str, Transcript] = {}
        self._cards: dict[str, Card] = {}
        self._titles: dict[str, Elided] = {}
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(GAP)
        self._placed: tuple[tuple[str, ...], int] = ((), 0)

    def show_sides(self, sides: Sequence[Side]) -> None:
        for side in sides:
            if side.name not in self.views:
                self._make(side)
            self._titles[side.name].setText(side.title)
            self._titles[side.name].setToolTip(f"{side.title}: {side.detail}" if side.detail else side.title)
            self.views[side.name].setAccessibleName(side.title)
            self.views[side.name].show_turns(side.turns)
        self._place(tuple(side.name for side in sides))

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._place(self._placed[0])

    def _make(self, side: Side) -> None:
        card, title, view = Card(margin=10), Elided(side.title, "strong"), Transcript(side.title)
        card.setParent(self)  # before it is shown: without a parent it would be a window of its own
        card.add(title, view)
        card.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Expanding
        )  # equal, whatever the titles
        view.setFrameShape(QFrame.Shape.NoFrame)
        view.setProperty("role", "answer")
        view.setMinimumHeight(64)
        view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.views[side.name], self._cards[side.name], self._titles[side.name] = view, card, title

    def _place(self, names: tuple[str, ...]) -> None:
        across = max(1, min(len(names), self.width() // COLUMN_WIDTH))
        rows = min(MOST_ROWS, -(-len(names) // across))
        across = -(-len(names) // max(1, rows))
        if (names, across) == self._placed:
            return
        self._placed = (names, across)
        for name, card in self._cards.items():
            self._grid.removeWidget(card)
            card.setVisible(name in names)
        for column in range(self._grid.columnCount()):
            self._grid.setColumnStretch(column, 1 if column < across else 0)
        for index, name in enumerate(names):
            self._grid.addWidget(self._cards[name], index // across, index % across)
