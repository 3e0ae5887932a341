"""How answers are drawn: the fields of the generation settings, the adapters' strength and the system prompt."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QRect, QSize, Qt, Signal
from PySide6.QtGui import QColor, QPainter, QPaintEvent
from PySide6.QtWidgets import (
    QCheckBox,
    QGridLayout,
    QLineEdit,
    QStyle,
    QStyleOptionSlider,
    QWidget,
)

from app import theme
from app.presenters import numerals
from app.widgets.form import text_box
from app.widgets.kit import column, label, set_role, set_tip
from app.widgets.size_slider import QuietSlider
from qlora_engine import parsing

STRENGTH_STEPS = 20
"""The slider's steps per unit of adapter strength."""
MOST_STRENGTH = 1.5
FIELDS = (
    ("max_new_tokens", "Most tokens", 128, 1, 32_768, "The longest answer, in tokens"),
    ("seed", "Seed", 0, 0, 2**31 - 1, "The same seed on every side: the same draws"),
    ("temperature", "Temperature", 0.7, 0.01, 5.0, "Higher is freer"),
    ("top_p", "Top-p", 0.95, 0.0001, 1.0, "Draw from the likeliest tokens that together have this chance"),
    ("top_k", "Top-k", 50, 0, 1_000_000, "Draw from this many likeliest tokens; 0: from all"),
    ("repetition_penalty", "Repetition", 1.0, 0.01, 100.0, "Penalty: above 1 what was said already is less likely"),
)  # fmt: skip
"""Name, label, default, least, most, tooltip; whole numbers where the default is one."""
ONLY_SAMPLED = ("temperature", "top_p", "top_k", "seed")


class NumberField(QLineEdit):
    """A number in its range. What cannot be read is marked while it stands there, and goes back to the last good one."""

    def __init__(self, name: str, default: float, least: float, most: float, tip: str) -> None:
        super().__init__(_written(default))
        self._kind, self._least, self._most = type(default), least, most
        self._good = default
        self.setAccessibleName(name)
        set_tip(
            self,
            f"{tip}. From {_written(least)} to {numerals.short(most, is_grouped=True)}"
            if most < 1e6
            else tip,
        )
        self.textEdited.connect(lambda *_: set_role(self, state="" if self._read() is not None else "bad"))
        self.editingFinished.connect(self._settle)

    def value(self) -> float:
        found = self._read()
        if found is not None:
            self._good = found
        return self._good

    def _read(self) -> float | None:
        try:
            found = self._kind(numerals.plain(self.text()))
        except ValueError:
            return None
        return found if self._least <= found <= self._most else None

    def _settle(self) -> None:
        self.setText(_written(self.value()))
        set_role(self, state="")


class StrengthSlider(QuietSlider):
    """0 to 1.5 in steps of 0.05, with marks at 0, 1 (as trained) and 1.5."""

    def __init__(self) -> None:
        super().__init__()
        self.setAccessibleName("Adapter strength")
        self.setRange(0, round(MOST_STRENGTH * STRENGTH_STEPS))
        self.setValue(STRENGTH_STEPS)
        self.setMinimumHeight(38)

    def sizeHint(self) -> QSize:
        return QSize(super().sizeHint().width(), 38)

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        painter = QPainter(self)
        painter.setFont(theme.font(11))
        painter.setPen(QColor(theme.tokens().quiet))
        middle = self.height() // 2
        for value in (0, STRENGTH_STEPS, self.maximum()):
            x = self.place_of(value)
            painter.drawLine(x, middle + 5, x, middle + 7)
            text = numerals.short(value / STRENGTH_STEPS)
            wide = painter.fontMetrics().horizontalAdvance(text) + 2
            left = min(max(0, x - wide // 2), self.width() - wide)
            painter.drawText(QRect(left, middle + 7, wide, 13), Qt.AlignmentFlag.AlignCenter, text)

    def place_of(self, value: int) -> int:
        """Where the handle's middle stands at `value`, in pixels."""
        option = QStyleOptionSlider()
        self.initStyleOption(option)
        handle = self.style().subControlRect(
            QStyle.ComplexControl.CC_Slider, option, QStyle.SubControl.SC_SliderHandle, self
        )
        room = self.width() - handle.width()
        return handle.width() // 2 + QStyle.sliderPositionFromValue(0, self.maximum(), value, room)


class DrawingForm(QWidget):
    """Signals: `changed` when the person changed a setting."""

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, NumberField] = {}
        grid = QGridLayout()
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(8)
        grid.setVerticalSpacing(2)
        for index, (name, title, default, least, most, tip) in enumerate(FIELDS):
            found = NumberField(title, default, least, most, tip)
            found.editingFinished.connect(self.changed)
            self.fields[name] = found
            row, across = 2 * (index // 2), index % 2
            grid.addWidget(label(title, "small"), row, across)
            grid.addWidget(found, row + 1, across)
        self.sampling = QCheckBox("Sample (else greedy)")
        set_tip(self.sampling, "Greedy takes the likeliest token, and gives the same answer every time")
        self.sampling.toggled.connect(self._sampling_changed)
        self.system = text_box("System prompt")
        self.system.setPlaceholderText("As trained")
        self.system.setFixedHeight(64)
        self.tools_box = text_box("Tools")
        self.tools_box.setPlaceholderText('[{"name": "weather", ...}]')
        self.tools_box.setFixedHeight(64)
        set_tip(
            self.tools_box,
            "JSON definitions of tools the model may call, as the OpenAI form has them. Its calls are shown, none is carried out",
        )
        self.tools_box.textChanged.connect(self._tools_changed)
        self.strength = StrengthSlider()
        self.strength_text = label(strength_text(1.0), "small")
        self.strength.valueChanged.connect(self._show_strength)
        self.setLayout(
            column(
                self.sampling, grid, label("Adapter strength", "small"), self.strength, self.strength_text,
                label("System prompt", "small"), self.system, label("Tools (JSON)", "small"), self.tools_box, None, gap=6,
            )
        )  # fmt: skip
        self._sampling_changed()

    def settings(self) -> dict[str, object]:
        """The fields of the engine's generation settings; those that do nothing in a greedy answer are left out."""
        is_sampled = self.sampling.isChecked()
        found: dict[str, object] = {"do_sample": is_sampled}
        for name, field in self.fields.items():
            if is_sampled or name not in ONLY_SAMPLED:
                found[name] = field.value()
        return found

    def strength_value(self) -> float:
        return self.strength.value() / STRENGTH_STEPS

    def system_prompt(self) -> str:
        return self.system.toPlainText().strip()

    def tools(self) -> list[Any]:
        """The definitions; none where nothing is written, or no JSON."""
        try:
            found = parsing.from_json(self.tools_box.toPlainText().strip() or "[]")
        except ValueError:
            return []
        return found if isinstance(found, list) else [found]

    def has_good_tools(self) -> bool:
        """False while what is written there is no JSON; it is marked."""
        return not self.tools_box.toPlainText().strip() or bool(self.tools())

    def _tools_changed(self) -> None:
        set_role(self.tools_box, state="" if self.has_good_tools() else "bad")

    def set_scalable(self, can_scale: bool) -> None:
        self.strength.setEnabled(can_scale)
        set_tip(self.strength, "" if can_scale else "A DoRA adapter, or none, has no strength to turn")

    def _sampling_changed(self, *_: object) -> None:
        for name in ONLY_SAMPLED:
            self.fields[name].setEnabled(self.sampling.isChecked())
        self.changed.emit()

    def _show_strength(self, value: int) -> None:
        self.strength_text.setText(strength_text(value / STRENGTH_STEPS))
        self.changed.emit()


def strength_text(strength: float) -> str:
    """`0.50`, `1.00 (as trained)`."""
    words = {0.0: " (off: the base)", 1.0: " (as trained)"}.get(strength, "")
    return numerals.decimal(strength, 2) + words


def _written(value: float) -> str:
    """As a field has it, ungrouped."""
    return numerals.short(value) if isinstance(value, float) else str(value)
