"""What a run was started with, to read."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Signal

from app.presenters.run_setup import SetupTable
from app.theme import GAP_WIDE
from app.widgets.kit import Card, Facts, SideBySide, boxed, button, column
from app.widgets.page import Page


class SetupScreen(Page):
    """Signals: `reuse_asked`."""

    reuse_asked = Signal()

    def __init__(self) -> None:
        super().__init__("Setup", "What this run was started with; it cannot be changed any more")
        self.reuse = button("New run from this one", self.reuse_asked.emit, tip="A draft with these settings")
        self.buttons.addWidget(self.reuse)
        self._tables: list[tuple[Card, Facts]] = []
        self._sides = (column(None, gap=GAP_WIDE), column(None, gap=GAP_WIDE))
        self._pair = SideBySide(*(boxed(side) for side in self._sides))
        self.content.addWidget(self._pair)
        self.content.addStretch(1)

    def show_tables(self, tables: Sequence[SetupTable]) -> None:
        self.reuse.setEnabled(bool(tables))
        while len(self._tables) < len(tables):
            facts = Facts(150)
            card = Card(tables[len(self._tables)].title).add(facts)
            side = self._sides[len(self._tables) % 2]
            side.insertWidget(side.count() - 1, card)
            self._tables.append((card, facts))
        for place, (card, facts) in enumerate(self._tables):
            card.setVisible(place < len(tables))
            if place < len(tables):
                card.heading.setText(tables[place].title)
                facts.set_rows(tables[place].rows)
