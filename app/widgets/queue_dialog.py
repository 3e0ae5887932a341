"""The queue in a window of its own: its order, when each run begins and ends, and when it goes on."""

from __future__ import annotations

from functools import partial

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QLineEdit, QWidget

from app.presenters.waiting import HEADS, WaitingState
from app.theme import GAP, GAP_PAGE, GAP_WIDE
from app.widgets.kit import Card, Notice, button, column, label, row
from app.widgets.scrolled import Scrolled
from app.widgets.tab_order import OrderedDialog
from app.widgets.wrapped_table import Cell, WrappedTable

MOVES = (("Next", "first"), ("Earlier", "earlier"), ("Later", "later"), ("Take out", "remove"))
DONE_HEADS = ("Run", "What became of it", "When and why")
TABLE_HEIGHT = 190


class QueueDialog(OrderedDialog):
    """Signals: `move_asked(run_dir, how)` with one of `MOVES`, `pause_asked`, `begin_asked(text)`: a time of the day, empty
    for at once."""

    move_asked = Signal(str, str)
    pause_asked = Signal()
    begin_asked = Signal(str)

    def __init__(self, parent: QWidget, usual_time: str) -> None:
        super().__init__(parent)
        self.setWindowTitle("Queue \u2013 QLoRA Studio")
        self.resize(760, 560)
        self.headline, self.note = label("", "strong", wraps=True), label("", "quiet", wraps=True)
        self.notice = Notice()
        self.table, self.over = WrappedTable("Runs in the queue"), WrappedTable("What became of earlier runs")
        self.table.setSelectionBehavior(WrappedTable.SelectionBehavior.SelectRows)
        self.table.itemSelectionChanged.connect(self._offer)
        self.moves = {how: button(words, partial(self._move, how)) for words, how in MOVES}
        self.pause = button("Pause after this run", self.pause_asked.emit)
        self.time = QLineEdit(usual_time)
        self.time.setAccessibleName("Time of the day to begin at")
        self.time.setFixedWidth(72)
        self.hold = button("Begin then", lambda: self.begin_asked.emit(self.time.text()))
        self.at_once = button("Begin at once", lambda: self.begin_asked.emit(""))
        self.over_card = Card("Over").add(self.over)
        self._state: WaitingState | None = None
        self._lay_out()

    def _lay_out(self) -> None:
        inner = QWidget()
        inner.setLayout(column(
            self.headline, self.note, self.notice, self.table, row(*self.moves.values(), None),
            row(self.pause, None), row(label("Not before"), self.time, self.hold, self.at_once, None),
            self.over_card, None, gap=GAP,
        ))  # fmt: skip
        layout = column(Scrolled(inner), row(None, button("Close", self.accept)), gap=GAP)
        layout.setContentsMargins(GAP_PAGE, GAP_WIDE, GAP_PAGE, GAP_WIDE)
        self.setLayout(layout)

    @property
    def chosen(self) -> str:
        """The folder of the run that is chosen; empty without one."""
        place = self.table.currentRow()
        rows = self._state.rows if self._state is not None else ()
        return rows[place].key if 0 <= place < len(rows) else ""

    def show_state(self, state: WaitingState) -> None:
        """The chosen run stays the chosen one wherever it goes."""
        if state == self._state:
            return
        chosen = self.chosen
        self._state = state
        self.headline.setText(state.headline)
        self.note.setText(state.note)
        self.note.setVisible(bool(state.note))
        self.table.show_cells(HEADS, [[Cell(text) for text in one.cells] for one in state.rows])
        self.over.show_cells(DONE_HEADS, [[Cell(text) for text in cells] for cells in state.done])
        self.table.fit_columns(1)
        self.over.fit_columns(2)
        for table in (self.table, self.over):
            table.setMinimumHeight(min(table.whole_height, TABLE_HEIGHT))
        keys = [one.key for one in state.rows]
        if keys:
            self.table.setCurrentCell(keys.index(chosen) if chosen in keys else 0, 0)
        self.table.setVisible(bool(keys))
        self.over_card.setVisible(bool(state.done))
        self.pause.setText(state.pause_text)
        self.pause.setAccessibleName(state.pause_text)
        self.at_once.setEnabled(state.is_held)
        self._offer()

    def _offer(self) -> None:
        rows = self._state.rows if self._state is not None else ()
        can_move = any(one.key == self.chosen and one.can_move for one in rows)
        for found in self.moves.values():
            found.setEnabled(can_move)

    def _move(self, how: str) -> None:
        if self.chosen:
            self.move_asked.emit(self.chosen, how)
