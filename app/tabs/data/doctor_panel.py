"""Data tab, Doctor: what is wrong with the data, the gravest first, each with its rows and with what one click mends."""

from __future__ import annotations

from functools import partial

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QFileDialog, QWidget

from app.tabs.data.presenters.doctor import WRITE_CLEAN, DoctorState, FindingLine, Repair
from app.tabs.data.widgets.row_links import links
from app.theme import GAP, GAP_WIDE
from app.widgets.kit import Card, Notice, boxed, button, column, emptied, label, row


class DoctorPanel(QWidget):
    """Signals: `row_asked(number)`, `held_row_asked(number)`, `repair_asked(Repair)`, `write_asked(path)`, `use_asked(path)`, `check_asked`."""

    row_asked = Signal(int)
    held_row_asked = Signal(int)
    repair_asked = Signal(object)
    write_asked = Signal(str)
    use_asked = Signal(str)
    check_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.headline, self.written = Notice(), Notice()
        self._list = column(gap=GAP)
        self.setLayout(column(self.headline, self.written, boxed(self._list), None, gap=GAP_WIDE))
        self._shown: DoctorState | None = None

    def show_state(self, state: DoctorState, notice: str, hint: str) -> None:
        if notice:
            actions = (("Check data", self.check_asked.emit),) if hint and not state.findings else ()
            self.headline.say(notice, hint, "accent", *actions)
        else:
            self.headline.say(state.headline, "", state.tone)
        if state == self._shown:
            return
        self._shown = state
        emptied(self._list)
        for finding in state.findings:
            self._list.addWidget(self._card(finding))

    def show_written(self, text: str, tone: str, path: str = "") -> None:
        actions = (("Use this file", lambda: self.use_asked.emit(path)),) if path else ()
        self.written.say(text, "", tone, *actions)

    def _card(self, finding: FindingLine) -> Card:
        card = Card(margin=12)
        card.add(
            label(finding.grade_text, "strong", tone=finding.tone),
            label(finding.text, wraps=True, selectable=True),
        )
        if finding.rows:
            card.add(row(*links(finding.rows, self.row_asked.emit), None))
        if finding.held_rows:
            card.add(
                row(label("Held out:", "small"), *links(finding.held_rows, self.held_row_asked.emit), None)
            )
        for repair in finding.repairs:
            card.add(row(button(repair.caption, partial(self._repair, repair)), None))
        return card

    def _repair(self, repair: Repair) -> None:
        if repair.action != WRITE_CLEAN:
            self.repair_asked.emit(repair)
            return
        file, _ = QFileDialog.getSaveFileName(self, "Keep the good rows as", "", "JSON lines (*.jsonl)")
        if file:
            self.write_asked.emit(file if file.endswith((".jsonl", ".ndjson")) else f"{file}.jsonl")
