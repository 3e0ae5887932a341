"""Which column of the data is what: a drop-down list over the data's own columns for each field of the format."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QGridLayout, QLabel, QWidget

from app.tabs.data.presenters.source import FieldLine
from app.theme import GAP
from app.widgets.form import QuietCombo
from app.widgets.kit import emptied, label, set_role


class MappingForm(QWidget):
    """Signals: `chosen(field, column)` by the person; an empty column leaves it to the program."""

    chosen = Signal(str, str)

    def __init__(self) -> None:
        super().__init__()
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(GAP)
        self._grid.setVerticalSpacing(6)
        self._grid.setColumnStretch(1, 1)
        self.combos: dict[str, QuietCombo] = {}
        self._names: dict[str, QLabel] = {}
        self._shown: tuple[FieldLine, ...] = ()

    def show_fields(self, fields: Sequence[FieldLine]) -> None:
        if tuple(fields) == self._shown:
            return
        if [line.field for line in fields] != [line.field for line in self._shown]:
            self._make(fields)
        self._shown = tuple(fields)
        for line in fields:
            self._paint(line)

    def _make(self, fields: Sequence[FieldLine]) -> None:
        emptied(self._grid)
        self.combos, self._names = {}, {}
        for place, line in enumerate(fields):
            combo, name = QuietCombo(), label(line.title, wraps=True)
            combo.setMinimumWidth(120)
            combo.setMinimumContentsLength(8)
            combo.setSizeAdjustPolicy(QuietCombo.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            combo.activated.connect(
                lambda index, each=line.field, box=combo: self.chosen.emit(each, str(box.itemData(index)))
            )
            name.setBuddy(combo)
            self._grid.addWidget(name, place, 0)
            self._grid.addWidget(combo, place, 1)
            self.combos[line.field], self._names[line.field] = combo, name

    def _paint(self, line: FieldLine) -> None:
        combo = self.combos[line.field]
        known = tuple((str(combo.itemData(i)), combo.itemText(i)) for i in range(combo.count()))
        if known != line.choices:
            combo.clear()
            for column, words in line.choices:
                combo.addItem(words, column)
        combo.setCurrentIndex(max(0, combo.findData(line.chosen)))
        combo.setAccessibleName(f"Column for {line.title}")
        set_role(combo, state="bad" if line.is_missing else "")
        self._names[line.field].setText(line.title + (": needed" if line.is_missing else ""))
