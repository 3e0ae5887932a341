"""The values of one setting to be tried: boxes to check where it has a few, else a list to type."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QCheckBox, QLineEdit, QVBoxLayout, QWidget

from app.presenters.experiment import choices_of, separator
from app.presenters.typed import shown
from app.widgets.kit import emptied, label, set_tip
from qlora_engine.knobs import Knob


class ValuesEditor(QWidget):
    """Signals: `changed` when a value came or went."""

    changed = Signal()

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._layout = QVBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(4)
        self.boxes: list[tuple[Any, QCheckBox]] = []
        self.field: QLineEdit | None = None

    def ask_for(self, knob: Knob | None, value: Any) -> None:
        """Other values, from the one that the draft has; None: none."""
        emptied(self._layout)
        self.boxes, self.field = [], None
        choices = choices_of(knob) if knob is not None else ()
        for one, words in sorted(choices, key=lambda choice: choice[0] != value):
            box = QCheckBox(words)
            box.setAccessibleName(f"{self.name}: {words}")
            box.setChecked(one == value)
            box.toggled.connect(lambda *_: self.changed.emit())
            self._layout.addWidget(box)
            self.boxes.append((one, box))
        if knob is not None and not choices:
            self._add_field(knob, value)

    @property
    def values(self) -> tuple[Any, ...]:
        """The checked ones, or the list as it was typed as one text."""
        if self.field is not None:
            return (self.field.text(),)
        return tuple(one for one, box in self.boxes if box.isChecked())

    def _add_field(self, knob: Knob, value: Any) -> None:
        self.field = QLineEdit(shown(value) if value is not None else "none")
        self.field.setAccessibleName(f"{self.name}: values")
        set_tip(self.field, knob.help.replace("`", ""))
        self.field.textChanged.connect(lambda *_: self.changed.emit())
        unit = f" {knob.unit}," if knob.unit else ""
        self._layout.addWidget(self.field)
        self._layout.addWidget(
            label(f"Several values,{unit} with {separator(knob)} between", "small", wraps=True)
        )
