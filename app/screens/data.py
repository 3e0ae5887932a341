"""Data page: where the rows come from, how they are read, and what the model will really be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QFileDialog, QLineEdit, QProgressBar

from app.presenters.data import DataState
from app.theme import GAP_WIDE
from app.widgets.form import KnobForm
from app.widgets.kit import Card, Facts, Notice, SideBySide, boxed, button, column, label, markup, row
from app.widgets.page import Page
from app.widgets.tokens import TokenView, legend_html
from qlora_engine.config import all_knobs

FILES = "Datasets (*.json *.jsonl *.csv *.tsv *.parquet *.txt);;All files (*)"
ON_TOP = ("data.path",)


class DataScreen(Page):
    """Signals: `path_chosen(str)`, `edited(path, value)`, `reset_asked(path)`, `check_asked`, `cancel_asked`."""

    path_chosen = Signal(str)
    edited = Signal(str, object)
    reset_asked = Signal(str)
    check_asked = Signal()
    cancel_asked = Signal()

    def __init__(self) -> None:
        super().__init__("Data", "The rows to learn from, and what of them is trained")
        self.check = button("Check data", self.check_asked.emit, "primary")
        self.buttons.addWidget(self.check)
        self.path = QLineEdit()
        self.path.setAccessibleName("Dataset")
        self.path.setPlaceholderText("File, folder, or Hugging Face dataset id")
        self.path.editingFinished.connect(lambda: self.path_chosen.emit(self.path.text().strip()))
        source = Card("Dataset").add(
            self.path,
            row(button("Open file\u2026", self._open), button("Use the starter dataset", lambda: self.path_chosen.emit("starter")), None),
        )  # fmt: skip
        knobs = {p: k for p, k in all_knobs().items() if p.startswith("data.") and p not in ON_TOP}
        self.form = KnobForm(knobs)
        self.form.edited.connect(self.edited)
        self.form.reset_asked.connect(self.reset_asked)
        self.more = button("Show all options", self._toggle, "link")
        options = Card("How it is read").add(self.form, row(self.more, None))
        self._is_expert = False
        self.state_notice = Notice()
        self.progress_text, self.progress = label(role="small"), QProgressBar()
        self.progress.setRange(0, 0)
        self.progress.setTextVisible(False)
        stop = button("Cancel", self.cancel_asked.emit)
        self.progress_row = boxed(row(boxed(column(self.progress_text, self.progress, gap=4)), stop))
        self.facts = Facts(100)
        self.problems = Notice()
        self.found = Card("What was found").add(
            self.state_notice, self.progress_row, self.facts, self.problems
        )
        self.tokens = TokenView()
        self.tokens.setMinimumHeight(300)
        self._legend = markup(legend_html(), wraps=True)
        self.rows_card = Card("What the model sees").add(self._legend, self.tokens)
        left = column(source, options, None, gap=GAP_WIDE)
        right = column(self.found, self.rows_card, None, gap=GAP_WIDE)
        right.setStretch(1, 1)
        self.content.addWidget(SideBySide(boxed(left), boxed(right), stretch=(4, 5)), 1)
        self._shown_rows: object = None

    def show_state(self, state: DataState) -> None:
        if not self.path.hasFocus():
            self.path.setText(state.path)
        self.state_notice.say(state.notice, state.notice_hint, state.notice_tone)
        self.progress_row.setVisible(state.is_checking)
        self.progress_text.setText(state.checking_text)
        self.check.setEnabled(state.can_check and not state.is_checking)
        self.facts.set_rows(state.rows)
        self.facts.setVisible(state.has_report)
        said = [*state.warnings, *(f"Left out: {drop}" for drop in state.drops)]
        self.problems.say("\n".join(said), "", "warning")
        self.rows_card.setVisible(bool(state.shown_rows))
        if self._shown_rows is not state.shown_rows:
            self._shown_rows = state.shown_rows
            self.tokens.show_rows(state.shown_rows)

    def render_options(
        self, values: Mapping[str, Any], problems: Mapping[str, str], changed: frozenset[str]
    ) -> None:
        self.form.show_values(values, problems, changed, self._is_expert)
        self._last = (values, problems, changed)

    def restyle(self) -> None:
        """Take the theme's colours into what is painted as text."""
        self._legend.setText(legend_html())
        self.tokens.show_rows(self._shown_rows or ())  # type: ignore[arg-type]

    def _toggle(self) -> None:
        self._is_expert = not self._is_expert
        self.more.setText("Show fewer options" if self._is_expert else "Show all options")
        self.render_options(*self._last)

    def _open(self) -> None:
        file, _ = QFileDialog.getOpenFileName(self, "Choose a dataset", "", FILES)
        if file:
            self.path_chosen.emit(file)
