"""Prompt sets: saved prompts asked of many runs in one go, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import (
    QCheckBox,
    QHBoxLayout,
    QHeaderView,
    QListWidget,
    QListWidgetItem,
    QWidget,
)

from app.presenters.replayed import AnswerCell, ReplayFold, ReplayState
from app.presenters.runs import loss_text
from app.presenters.words import count_text
from app.theme import GAP_WIDE
from app.widgets.form import QuietCombo
from app.widgets.kit import Card, Notice, button, column, label, row, set_tip
from app.widgets.working import Working
from app.widgets.wrapped_table import Cell, WrappedTable
from qlora_engine.evaluate.prompt_sets import PromptSet
from qlora_engine.runs.summary import RunSummary

SIDE_WIDTH = 226
NARROWEST_COLUMN = 132


class SetsPanel(QWidget):
    """Signals: `set_chosen(name)`, `new_asked`, `edit_asked`, `import_asked`, `delete_asked`, `selection_changed`,
    `replay_asked`, `stop_asked`."""

    set_chosen = Signal(str)
    new_asked = Signal()
    edit_asked = Signal()
    import_asked = Signal()
    delete_asked = Signal()
    selection_changed = Signal()
    replay_asked = Signal()
    stop_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.sets = QuietCombo()
        self.sets.setAccessibleName("Prompt set")
        self.sets.setMinimumWidth(160)
        self.sets.activated.connect(lambda index: self.set_chosen.emit(self.sets.itemData(index)))
        self.edit = button("Edit\u2026", self.edit_asked.emit)
        self.delete = button("Delete\u2026", self.delete_asked.emit, "danger")
        top = row(
            self.sets, button("New\u2026", self.new_asked.emit), self.edit,
            button("Import\u2026", self.import_asked.emit, tip="Text with a prompt on each line, JSONL or JSON"), self.delete,
        )  # fmt: skip
        top.setStretch(0, 1)
        self.notice = Notice()
        below = QHBoxLayout()
        below.setSpacing(GAP_WIDE)
        below.addWidget(self._choosing())
        below.addLayout(self._results(), 1)
        outer = column(top, self.notice, below, gap=12)
        outer.setStretch(2, 1)
        self.setLayout(outer)
        self._is_painting = False

    def _choosing(self) -> Card:
        self.runs = QListWidget()
        self.runs.setAccessibleName("Runs to ask")
        self.runs.setMinimumHeight(80)
        self.runs.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.runs.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.runs.itemChanged.connect(self._selected)
        self.with_base = QCheckBox("Base model too")
        self.with_base.setChecked(True)
        self.with_base.toggled.connect(self._selected)
        self.again = QCheckBox("Ask all again")
        set_tip(self.again, "Those too whose answers are kept")
        self.settings = label(role="small", wraps=True)
        set_tip(self.settings, "Set on the Chat tab; the same for every run")
        self.replay = button("Ask the runs", self.replay_asked.emit, "primary")
        card = Card("Who is asked", margin=12)
        card.add(self.runs, self.with_base, self.again, self.settings, self.replay)
        card.setFixedWidth(SIDE_WIDTH)
        return card

    def _results(self) -> QHBoxLayout:
        self.working = Working()
        self.working.stop_asked.connect(self.stop_asked)
        self.kept = label(role="quiet", wraps=True)
        self.table = WrappedTable("Answers")
        header = self.table.horizontalHeader()
        header.setMinimumSectionSize(NARROWEST_COLUMN)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        found = column(self.kept, self.working, self.table, gap=8)
        found.setStretch(2, 1)
        return row(found)

    def set_sets(self, sets: Sequence[PromptSet], chosen: str) -> None:
        self.sets.clear()
        for found in sets:
            self.sets.addItem(f"{found.name} ({count_text(len(found.prompts))})", found.name)
        self.sets.setCurrentIndex(max(0, self.sets.findData(chosen)))
        is_own = next((not found.is_builtin for found in sets if found.name == chosen), False)
        self.delete.setEnabled(is_own)
        self.edit.setText("Edit\u2026" if is_own else "Edit a copy\u2026")

    def set_runs(self, runs: Sequence[RunSummary], chosen: frozenset[str]) -> None:
        """Runs that can answer; those in `chosen` are checked."""
        self._is_painting = True
        self.runs.clear()
        for summary in runs:
            item = QListWidgetItem(summary.run_id)
            item.setData(Qt.ItemDataRole.UserRole, str(summary.path))
            set_tip(item, f"{summary.run_id}: held-out loss {loss_text(summary)}")
            item.setFlags(
                Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsSelectable
            )
            is_chosen = str(summary.path) in chosen
            item.setCheckState(Qt.CheckState.Checked if is_chosen else Qt.CheckState.Unchecked)
            self.runs.addItem(item)
        self._is_painting = False

    def chosen_runs(self) -> tuple[str, ...]:
        """Folders of the checked runs, in the list's order."""
        items = (self.runs.item(index) for index in range(self.runs.count()))
        return tuple(
            str(item.data(Qt.ItemDataRole.UserRole))
            for item in items
            if item.checkState() == Qt.CheckState.Checked
        )

    def show_state(self, fold: ReplayFold, settings_text: str, *, has_runs: bool, blocked_text: str) -> None:
        is_running = fold.state == "running"
        table = fold.table()
        can_ask = bool(table.titles) and not is_running and not blocked_text
        self.replay.setEnabled(can_ask and (fold.missing > 0 or self.again.isChecked()))
        self.settings.setText(f"{settings_text}.")
        self.working.show_work(fold.phase_text if is_running else "", fold.share)
        self.kept.setText(table.kept_text if has_runs else "")
        for part in (self.runs, self.with_base, self.again, self.sets):
            part.setEnabled(not is_running)
        if fold.error_text:
            self.notice.say(fold.error_text, fold.error_hint, "bad")
        elif not has_runs:
            self.notice.say(
                "There is nothing trained yet.",
                "A prompt set is asked of finished runs. Write one now, ask it later.",
            )
        else:
            self.notice.say(blocked_text)
        self._paint(table)

    def _paint(self, table: ReplayState) -> None:
        rows = [
            [Cell(prompt), *(_cell(cell) for cell in cells)]
            for prompt, cells in zip(table.prompts, table.cells, strict=True)
        ]
        self.table.show_cells(("Prompt", *table.titles), rows)

    def _selected(self, *_: object) -> None:
        if not self._is_painting:
            self.selection_changed.emit()


def _cell(cell: AnswerCell) -> Cell:
    if cell.text is None:
        return Cell("\u2013", "not asked yet")
    return Cell(cell.text or "(nothing)", cell.note)
