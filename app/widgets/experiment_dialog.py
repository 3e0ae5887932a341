"""Asks which values of one or two settings are to be tried, and shows what each cell of the grid will need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import QTimer, Signal
from PySide6.QtWidgets import QWidget

from app.presenters.experiment import TYPE_MORE, USUAL_SEEDS, ExperimentState, Wish, settings
from app.theme import GAP, GAP_PAGE, GAP_WIDE
from app.widgets.form import QuietCombo
from app.widgets.kit import Notice, SideBySide, boxed, button, column, label, row
from app.widgets.scrolled import Scrolled
from app.widgets.tab_order import OrderedDialog
from app.widgets.values_editor import ValuesEditor
from app.widgets.wrapped_table import Cell, WrappedTable
from qlora_engine.knobs import Knob

SETTLE_MS = 250
"""Typing is followed when it rests for so long."""
SEEDS = (1, 2, 3, 5, 10, 20)
NAMES = ("Setting", "Second setting, if any")


class ExperimentDialog(OrderedDialog):
    """Signals: `wished(Wish)` when the grid is another one, `begin_asked`."""

    wished = Signal(object)
    begin_asked = Signal()

    def __init__(self, parent: QWidget, knobs: Mapping[str, Knob], values: Mapping[str, Any]) -> None:
        super().__init__(parent)
        self.setWindowTitle("Try several values \u2013 QLoRA Studio")
        self.resize(780, 600)
        self._knobs, self._own = knobs, values
        self.which = [QuietCombo() for _ in NAMES]
        self.editors = [ValuesEditor(name) for name in NAMES]
        self.seeds = QuietCombo()
        self.seeds.setAccessibleName("Seeds")
        for count in SEEDS:
            self.seeds.addItem(str(count), count)
        self.seeds.setCurrentIndex(self.seeds.findData(USUAL_SEEDS))
        self.notice, self.table = Notice(), WrappedTable("What each cell needs")
        self.table.is_whole = True
        self.total = label("", "quiet", wraps=True)
        self.begin = button("Put into the queue", self.begin_asked.emit, "primary")
        self._soon = QTimer(self, singleShot=True, interval=SETTLE_MS)
        self._soon.timeout.connect(lambda: self.wished.emit(self.wish))
        self._lay_out()
        self._fill()

    @property
    def wish(self) -> Wish:
        pairs = zip(self.which, self.editors, strict=True)
        return Wish(
            tuple((combo.currentData(), editor.values) for combo, editor in pairs if combo.currentData()),
            self.seeds.currentData(),
        )

    def show_state(self, state: ExperimentState) -> None:
        self.notice.say(state.problem, state.hint, "bad")
        self.table.show_cells(state.heads, [[Cell(text) for text in cells] for cells in state.rows])
        self.table.setVisible(bool(state.rows))
        if state.rows:
            self.table.fit_columns(len(state.heads) - 2)
        self.total.setText(state.total)
        self.begin.setText(state.queue_text)
        self.begin.setAccessibleName(state.queue_text)
        self.begin.setEnabled(state.can_begin and not self._soon.isActive())

    def _lay_out(self) -> None:
        sides = [
            boxed(column(label(name, "strong"), combo, editor, None))
            for name, combo, editor in zip(NAMES, self.which, self.editors, strict=True)
        ]
        inner = QWidget()
        inner.setLayout(column(
            label("Every combination is a run of its own under the same seeds, so on the same rows in the same order. The first "
                  "value is what the others are compared with.", "quiet", wraps=True),
            SideBySide(*sides, needs=560), row(label("Seeds", "strong"), self.seeds, None),
            label("Each seed is another order and another start; three tell noise from gain.", "small", wraps=True),
            self.notice, self.table, self.total, None, gap=GAP,
        ))  # fmt: skip
        layout = column(Scrolled(inner), row(None, button("Cancel", self.reject), self.begin), gap=GAP)
        layout.setContentsMargins(GAP_PAGE, GAP_WIDE, GAP_PAGE, GAP_WIDE)
        self.setLayout(layout)

    def _fill(self) -> None:
        for place, combo in enumerate(self.which):
            combo.setAccessibleName(NAMES[place])
            if place:
                combo.addItem("None", "")
            for path, words in settings():
                combo.addItem(words, path)
            combo.setSizeAdjustPolicy(QuietCombo.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            combo.activated.connect(lambda *_, p=place: self._choose(p))
            self.editors[place].changed.connect(self._settle)
            self._choose(place)
        self.seeds.activated.connect(lambda *_: self._settle())
        self.show_state(ExperimentState(total=TYPE_MORE))

    def _choose(self, place: int) -> None:
        path = self.which[place].currentData()
        self.editors[place].ask_for(self._knobs.get(path), self._own.get(path))
        self._settle()

    def _settle(self) -> None:
        """What is shown is not what is wished any more, so it cannot be begun."""
        self.begin.setEnabled(False)
        self._soon.start()
