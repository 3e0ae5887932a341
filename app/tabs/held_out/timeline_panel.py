"""Timeline: a fixed prompt's answers from evaluation to evaluation."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QAbstractItemView, QHeaderView, QWidget

from app.presenters.timeline import COLUMNS, TimelineState
from app.widgets.form import QuietCombo
from app.widgets.kit import Notice, column, label, row
from app.widgets.wrapped_table import Cell, WrappedTable


class TimelinePanel(QWidget):
    """Signals: `prompt_chosen(prompt)`."""

    prompt_chosen = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.prompt = _combo("Fixed prompt")
        self.prompt.activated.connect(lambda index: self.prompt_chosen.emit(self.prompt.itemData(index)))
        top = row(self.prompt)
        self.notice = Notice()
        self.asked = label(wraps=True, selectable=True)
        self.summary = label(role="quiet")
        self.table = WrappedTable("Answers over time")
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        outer = column(top, self.notice, self.asked, self.summary, self.table, gap=8)
        outer.setStretch(4, 100)
        outer.addStretch(1)  # what is above stays above while there is no table
        self.setLayout(outer)
        self._shown: TimelineState | None = None

    def show_state(self, state: TimelineState, *, has_runs: bool) -> None:
        if not has_runs:
            self.notice.say("This run has not begun.", "A run answers its fixed prompts before training and at each evaluation.")  # fmt: skip
        elif not state.prompts:
            self.notice.say("This run answered no fixed prompts.", "Name some with the option \u201cFixed prompts\u201d in the settings before the next run.")  # fmt: skip
        else:
            self.notice.say("")
        for part in (self.table, self.asked, self.summary, self.prompt):
            part.setVisible(bool(state.prompts))
        if state == self._shown:
            return
        self._shown = state
        self.prompt.clear()
        for prompt in state.prompts:
            self.prompt.addItem(" ".join(prompt.split()), prompt)
        self.prompt.setCurrentIndex(state.chosen)
        self.asked.setText(f"Asked: {state.prompts[state.chosen]}" if state.prompts else "")
        self.summary.setText(f"{state.summary}; what changed is bold." if state.rows else "")
        rows = [
            (Cell(found.step_text), Cell(found.loss_text), Cell(found.answer, is_strong=found.is_changed))
            for found in state.rows
        ]
        self.table.show_cells(COLUMNS, rows)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(len(COLUMNS) - 1, QHeaderView.ResizeMode.Stretch)


def _combo(name: str) -> QuietCombo:
    found = QuietCombo()
    found.setAccessibleName(name)
    found.setMinimumWidth(160)
    return found
