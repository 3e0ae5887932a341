"""Memory page: with and without double quantization side by side, part by part, against a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import Signal
from PySide6.QtGui import QHideEvent, QShowEvent
from PySide6.QtWidgets import QHBoxLayout, QScrollArea, QVBoxLayout

from app.presenters.memory import MemoryState
from app.presenters.memory_sizes import Size
from app.presenters.memory_words import Remedy
from app.theme import GAP_WIDE
from app.widgets.form import KnobForm, QuietCombo
from app.widgets.kit import Card, button, column, label, line, row, set_role
from app.widgets.memory_bar import MemoryBars
from app.widgets.memory_lines import AdviceList, CostList, MomentTable
from app.widgets.page import Page
from app.widgets.part_list import PartList
from app.widgets.size_slider import SizeSlider
from qlora_engine.config import all_knobs

KNOBS = (
    "quantization.double_quant", "data.seq_len", "training.micro_batch", "lora.rank", "lora.targets",
    "training.optimizer", "training.gradient_checkpointing",
)  # fmt: skip
SIZES = 4


class MemoryScreen(Page):
    """Signals: `edited(path, value)`, `reset_asked(path)`, `gpu_chosen(name or "")`, `seen(is_visible)`."""

    edited = Signal(str, object)
    reset_asked = Signal(str)
    gpu_chosen = Signal(str)
    seen = Signal(bool)

    def __init__(self) -> None:
        super().__init__("Memory", "What the run will need")
        self.gpu = QuietCombo()
        self.gpu.setAccessibleName("Memory of which device")
        self.gpu.setMinimumWidth(210)
        self.gpu.activated.connect(lambda index: self.gpu_chosen.emit(self.gpu.itemData(index) or ""))
        self.buttons.addLayout(row(label("On", "quiet"), self.gpu))
        self.content.addWidget(self._bars_card())
        lower = QHBoxLayout()
        lower.setSpacing(GAP_WIDE)
        lower.addLayout(column(self._settings_card(), None), 1)
        lower.addLayout(self._side_cards(), 1)
        self.content.addLayout(lower)
        self.parts = PartList()
        self.bars.part_chosen.connect(self._open_part)
        self.parts_card = Card("Where every byte comes from").add(
            label("A part opens to its formula, its numbers and its source.", "small"), self.parts
        )
        self.content.addWidget(self.parts_card)
        self.content.addStretch(1)

    def _bars_card(self) -> Card:
        self.verdict = label(role="heading", wraps=True)
        self._remedy: Remedy | None = None
        self.fix = button("", self._apply_remedy)
        self.fix.hide()
        self.more, self.saving = label(wraps=True), label(wraps=True)
        self.basis, self.mark, self.past = (label(role="small", wraps=True) for _ in range(3))
        self.bars = MemoryBars()
        self.sizes_heading = label(role="small", wraps=True)
        sliders = QHBoxLayout()
        sliders.setSpacing(GAP_WIDE)
        self.sizes = [SizeSlider() for _ in range(SIZES)]
        for slider in self.sizes:
            slider.edited.connect(self.edited)
            sliders.addWidget(slider, 1)
        return Card().add(
            self.verdict, self.more, row(self.fix, None), self.saving, self.bars, line(), self.sizes_heading,
            sliders, line(), self.basis, self.mark, self.past,
        )  # fmt: skip

    def _settings_card(self) -> Card:
        self.form = KnobForm({path: knob for path, knob in all_knobs().items() if path in KNOBS})
        self.form.edited.connect(self.edited)
        self.form.reset_asked.connect(self.reset_asked)
        return Card("What changes it").add(self.form)

    def _side_cards(self) -> QVBoxLayout:
        self.advice, self.moments, self.costs = AdviceList(), MomentTable(), CostList()
        self.advice.applied.connect(self.edited)
        self.advice_card = Card("What would save memory").add(self.advice)
        note = label("Tensors only, each moment by itself", "small", wraps=True)
        self.moments_card = Card("Other peaks").add(note, self.moments)
        self.costs_card = Card("Costs that often go unmentioned").add(self.costs)
        found = column(self.advice_card, self.moments_card, self.costs_card, gap=GAP_WIDE)
        found.addStretch(1)
        return found

    def show_state(self, state: MemoryState) -> None:
        self.verdict.setText(state.verdict)
        set_role(self.verdict, tone=state.verdict_tone)
        for place, text in (
            (self.more, state.verdict_more), (self.saving, state.saving), (self.basis, state.basis),
            (self.mark, state.mark), (self.past, state.past),
        ):  # fmt: skip
            place.setText(text)
            place.setVisible(bool(text))
        self._show_remedy(state.remedy)
        self._show_gpus(state)
        self.bars.show_bars(state.bars, state.capacity)
        self.sizes_heading.setText(state.sizes_heading)
        self.show_sizes(state.sizes)
        self.parts.show_parts(state.parts, state.totals, state.chosen_caption, state.other_caption)
        self.advice.show_lines(state.advice)
        self.moments.show_lines(state.moments)
        self.costs_card.setVisible(bool(state.costs))
        self.costs.show_costs(state.costs)

    def show_sizes(self, sizes: Sequence[Size]) -> None:
        """The sliders alone; without sizes they stay as they are."""
        for slider, size in zip(self.sizes, sizes, strict=False):
            slider.show_size(size)

    def show_mark(self, text: str) -> None:
        """The mark alone: it tells how long ago the rehearsal was."""
        self.mark.setText(text)
        self.mark.setVisible(bool(text))

    def render_options(
        self, values: Mapping[str, Any], problems: Mapping[str, str], changed: frozenset[str]
    ) -> None:
        self.form.show_values(values, problems, changed)

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self.seen.emit(True)

    def hideEvent(self, event: QHideEvent) -> None:
        super().hideEvent(event)
        self.seen.emit(False)

    def _show_remedy(self, remedy: Remedy | None) -> None:
        self._remedy = remedy
        self.fix.setVisible(remedy is not None)
        self.fix.setText(remedy.text if remedy is not None else "")
        self.fix.setAccessibleName(remedy.text if remedy is not None else "")

    def _apply_remedy(self) -> None:
        for path, value in self._remedy.edits if self._remedy is not None else ():
            self.edited.emit(path, value)

    def _show_gpus(self, state: MemoryState) -> None:
        if self.gpu.count() != len(state.gpu_names) + 1:
            self.gpu.clear()
            self.gpu.addItem("This computer", "")
            for name in state.gpu_names:
                self.gpu.addItem(f"What if: {name}", name)
        self.gpu.setCurrentIndex(max(0, self.gpu.findData(state.gpu or "")))

    def _open_part(self, name: str) -> None:
        """A click on a bar leads to the part's line."""
        detail = self.parts.open_part(name)
        area = self.findChild(QScrollArea)
        if detail is not None and area is not None:
            self.layout().activate()  # type: ignore[union-attr]
            area.ensureWidgetVisible(detail)
