"""Held-out rows of the chosen runs in one table, and the button that scores what is missing."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QHeaderView

from app.presenters.rows_across import RowsState
from app.widgets.kit import Card, Notice, button, label, row, set_tip
from app.widgets.working import Working
from app.widgets.wrapped_table import Cell, WrappedTable

NARROWEST = 160
"""Pixels of a column; more runs than have room are scrolled to."""


class RowsPanel(Card):
    """Signals: `score_asked`, `stop_asked`."""

    score_asked = Signal()
    stop_asked = Signal()

    def __init__(self) -> None:
        super().__init__("Held-out rows side by side")
        self.summary, self.notice, self.working = label("", "quiet", wraps=True), Notice(), Working()
        self.working.stop_asked.connect(self.stop_asked)
        self.score = button("Score held-out rows", self.score_asked.emit)
        self.table = WrappedTable("Held-out rows side by side")
        self.table.is_whole = True
        self.add(self.summary, self.notice, row(self.score, None), self.working, self.table)

    def show_rows(self, state: RowsState) -> None:
        self.summary.setText(state.summary)
        self.score.setVisible(bool(state.score_text))
        self.score.setText(state.score_text)
        self.score.setAccessibleName(state.score_text)
        self.table.setVisible(bool(state.rows))
        if state.rows:
            self.table.show_cells(state.heads, [[Cell(*cell) for cell in cells] for cells in state.rows])
            self.table.horizontalHeader().setMinimumSectionSize(NARROWEST)
            self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)

    def show_work(self, text: str, share: float | None, blocked_text: str) -> None:
        """`blocked_text`: why nothing can be scored now."""
        self.working.show_work(text, share)
        self.score.setEnabled(not text and not blocked_text)
        set_tip(self.score, blocked_text)
