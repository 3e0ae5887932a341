"""Data tab, Split and reasoning: what is held out, what is trained of a row, and what becomes of the thoughts before answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QButtonGroup, QFileDialog, QRadioButton, QWidget

from app.tabs.data.presenters.split import SplitState
from app.tabs.data.widgets.token_chips import TokenChips, legend
from app.theme import GAP_WIDE
from app.widgets.form import KnobForm
from app.widgets.kit import Card, Facts, Notice, SideBySide, boxed, button, column, label, row
from qlora_engine.config import DataSettings, all_knobs
from qlora_engine.knobs import knobs_of

SPLIT = ("data.held_out_path", "data.held_out_fraction")
TRAINED = (
    "data.seq_len", "data.train_on", "data.packing", "data.chat_template", "data.empty_answers", "data.system_prompt",
    "data.preference", "data.ignore", "data.leave_out", "data.bad_rows",
)  # fmt: skip


class SplitPanel(QWidget):
    """Signals: `edited(path, value)`, `reset_asked(path)`."""

    edited = Signal(str, object)
    reset_asked = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        left = column(self._splitting(), self._training(), None, gap=GAP_WIDE)
        right = column(self._reasoning(), None, gap=GAP_WIDE)
        self.setLayout(column(SideBySide(boxed(left), boxed(right), needs=760), None))
        self._is_expert = False
        self._example: object = None

    def _form(self, paths: tuple[str, ...]) -> KnobForm:
        knobs = all_knobs()
        form = KnobForm({path: knobs[path] for path in paths})
        form.edited.connect(self.edited)
        form.reset_asked.connect(self.reset_asked)
        return form

    def _splitting(self) -> Card:
        self.headline, self.facts = Notice(), Facts(70)
        self.split = self._form(SPLIT)
        open_file = button("Choose a held-out file\u2026", self._open)
        return Card("Held out").add(self.headline, self.facts, self.split, row(open_file, None))

    def _training(self) -> Card:
        self.form = self._form(TRAINED)
        self.more = button("Show all options", self._toggle, "link")
        return Card("What is trained of a row").add(self.form, row(self.more, None))

    def _reasoning(self) -> Card:
        card = Card("Reasoning").add(label(knobs_of(DataSettings)["reasoning"].help, "small", wraps=True))
        self._group, self.policies, self.words = QButtonGroup(self), {}, {}
        for name, title in (knobs_of(DataSettings)["reasoning"].choices or {}).items():
            choice, words = QRadioButton(title), label(role="small", wraps=True)
            choice.clicked.connect(lambda *_, value=name: self.edited.emit("data.reasoning", value))
            words.setContentsMargins(26, 0, 0, 4)
            self._group.addButton(choice)
            self.policies[name], self.words[name] = choice, words
            card.add(choice, words)
        self.example_of, self.example = label(role="small", wraps=True), TokenChips()
        self.example.setMinimumHeight(180)
        self.shown = boxed(column(self.example_of, legend("tms"), self.example, gap=6))
        return card.add(self.shown)

    def show_state(self, state: SplitState) -> None:
        self.headline.say(state.headline)
        self.facts.set_rows(state.facts)
        for policy in state.policies:
            self.words[policy.name].setText(policy.words)
            self.words[policy.name].setVisible(bool(policy.words))
        self.policies[state.chosen].setChecked(True)
        self.example_of.setText(state.example_of)
        self.shown.setVisible(state.example is not None)
        if state.example is not None and state.example != self._example:
            self._example = state.example
            self.example.show_rows((state.example,))

    def render_options(
        self, values: Mapping[str, Any], problems: Mapping[str, str], changed: frozenset[str]
    ) -> None:
        self.split.show_values(values, problems, changed)
        self.form.show_values(values, problems, changed, self._is_expert)
        self._options = (values, problems, changed)

    def restyle(self) -> None:
        self.example.viewport().update()

    def _toggle(self) -> None:
        self._is_expert = not self._is_expert
        self.more.setText("Show fewer options" if self._is_expert else "Show all options")
        self.render_options(*self._options)

    def _open(self) -> None:
        file, _ = QFileDialog.getOpenFileName(self, "Choose held-out rows", "", "All files (*)")
        if file:
            self.edited.emit("data.held_out_path", file)
