"""Setup, settings: the recipe and the options it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import Signal

from app.theme import GAP_WIDE
from app.widgets.form import KnobForm, QuietCombo
from app.widgets.kit import Card, SideBySide, boxed, button, column, label, row
from app.widgets.page import Page
from qlora_engine.config import all_knobs

GROUPS = (
    ("Adapter", "lora."),
    ("Training", "training."),
    ("Base in 4 bits", "quantization."),
    ("Checkpoints", "checkpoint."),
    ("Output", "output."),
)


class SettingsScreen(Page):
    """Signals: `edited(path, value)`, `reset_asked(path)`, `preset_chosen(name)`, `save_job_asked`, `open_job_asked`."""

    edited = Signal(str, object)
    reset_asked = Signal(str)
    preset_chosen = Signal(str)
    save_job_asked = Signal()
    open_job_asked = Signal()

    def __init__(self) -> None:
        super().__init__("Settings", "Choose a recipe, then press Start")
        self._build_settings()

    def _build_settings(self) -> None:
        self.preset = QuietCombo()
        self.preset.setAccessibleName("Recipe")
        self.preset.setMinimumWidth(220)
        self.preset.activated.connect(lambda index: self.preset_chosen.emit(self.preset.itemData(index)))
        self.preset_note = label(role="quiet", wraps=True)
        top = Card("Recipe")
        top.add(
            row(self.preset, None, button("Open job file\u2026", self.open_job_asked.emit), button("Save job file\u2026", self.save_job_asked.emit, tip="A TOML file for \u201cqlora train\u201d")),
            self.preset_note,
        )  # fmt: skip
        knobs = all_knobs()
        self.forms: list[KnobForm] = []
        cards = []
        for title, prefix in GROUPS:
            form = KnobForm({path: knob for path, knob in knobs.items() if path.startswith(prefix)})
            form.edited.connect(self.edited)
            form.reset_asked.connect(self.reset_asked)
            self.forms.append(form)
            cards.append(Card(title).add(form))
        self.more = button("Show all options", self._toggle, "link")
        self._is_expert = False
        self._cards = cards
        columns = SideBySide(
            boxed(column(cards[0], cards[2], cards[3], cards[4], None, gap=GAP_WIDE)),
            boxed(column(cards[1], None, gap=GAP_WIDE)),
        )
        self.content.addWidget(top)
        self.content.addWidget(columns)
        self.content.addLayout(row(self.more, None))

    def set_presets(self, presets: Sequence[tuple[str, str]]) -> None:
        for name, title in presets:
            self.preset.addItem(title, name)

    def render_settings(
        self,
        values: Mapping[str, Any],
        problems: Mapping[str, str],
        changed: frozenset[str],
        preset: str,
        preset_note: str,
    ) -> None:
        index = self.preset.findData(preset)
        self.preset.setCurrentIndex(index)
        self.preset.setPlaceholderText("Your own")
        self.preset_note.setText(preset_note)
        for form, card in zip(self.forms, self._cards, strict=True):
            form.show_values(values, problems, changed, self._is_expert)
            card.setVisible(any(r.isVisibleTo(form) for r in form.rows.values()))
        self._last = (values, problems, changed, preset, preset_note)

    def _toggle(self) -> None:
        self._is_expert = not self._is_expert
        self.more.setText("Show fewer options" if self._is_expert else "Show all options")
        self.render_settings(*self._last)

    def focus_option(self, path: str) -> None:
        """Bring the field of an option to the person."""
        for form in self.forms:
            if path in form.rows:
                form.rows[path].setVisible(True)
                form.rows[path].focus()
