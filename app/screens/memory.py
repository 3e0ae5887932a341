"""Memory page: with and without double quantization side by side, part by part, against a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QIcon, QPainter, QPixmap
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from app import theme
from app.presenters.memory import AdviceLine, MemoryState
from app.theme import GAP_WIDE
from app.widgets.form import KnobForm, QuietCombo
from app.widgets.kit import Card, boxed, button, emptied, label, row, set_role
from app.widgets.memory_bar import Bar, Capacity, MemoryBars, Segment
from app.widgets.page import Page
from qlora_engine.config import all_knobs

KNOBS = (
    "quantization.double_quant", "data.seq_len", "training.micro_batch", "lora.rank", "lora.targets",
    "training.optimizer", "training.gradient_checkpointing",
)  # fmt: skip
COLUMNS = ("Part", "Chosen", "Other", "How it is computed", "With these numbers")


class MemoryScreen(Page):
    """Signals: `edited(path, value)`, `reset_asked(path)`, `gpu_chosen(name or "")`, `rehearse_asked`."""

    edited = Signal(str, object)
    reset_asked = Signal(str)
    gpu_chosen = Signal(str)

    def __init__(self) -> None:
        super().__init__("Memory", "What the run will need, with and without double quantization")
        self.gpu = QuietCombo()
        self.gpu.setAccessibleName("Memory of which device")
        self.gpu.setMinimumWidth(210)
        self.gpu.activated.connect(lambda index: self.gpu_chosen.emit(self.gpu.itemData(index) or ""))
        self.buttons.addLayout(row(label("On", "quiet"), self.gpu))
        self.verdict = label(role="heading", wraps=True)
        self.saving, self.basis = label(wraps=True), label(role="small", wraps=True)
        self.bars = MemoryBars()
        self.content.addWidget(Card().add(self.verdict, self.saving, self.bars, self.basis))
        self.form = KnobForm({path: knob for path, knob in all_knobs().items() if path in KNOBS})
        self.form.edited.connect(self.edited)
        self.form.reset_asked.connect(self.reset_asked)
        self.advice = QVBoxLayout()
        self.advice.setSpacing(2)
        self.advice_card = Card("What would save memory")
        self.advice_card.add(self.advice)
        settings = Card("What changes it").add(self.form)
        lower = QHBoxLayout()
        lower.setSpacing(GAP_WIDE)
        lower.addWidget(settings, 1)
        lower.addWidget(self.advice_card, 1)
        self.content.addLayout(lower)
        self.table = QTableWidget(0, len(COLUMNS))
        self.table.setAccessibleName("Parts of the memory")
        self.table.setHorizontalHeaderLabels(COLUMNS)
        self.table.verticalHeader().hide()
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.table.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.table.setShowGrid(False)
        self.table.setWordWrap(True)
        self.table.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        header = self.table.horizontalHeader()
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft)
        for index in (0, 1, 2):
            header.setSectionResizeMode(index, QHeaderView.ResizeMode.ResizeToContents)
        for index in (3, 4):
            header.setSectionResizeMode(index, QHeaderView.ResizeMode.Stretch)
        self.content.addWidget(Card("Where every byte comes from").add(self.table))
        self.content.addStretch(1)

    def show_state(self, state: MemoryState) -> None:
        self.verdict.setText(state.verdict)
        set_role(self.verdict, tone=state.verdict_tone)
        self.saving.setText(state.saving)
        self.basis.setText(state.basis)
        self._show_gpus(state)
        bars = [
            Bar(b.caption, tuple(Segment(*part) for part in b.parts), b.total_text, b.is_faint, b.is_chosen)
            for b in state.bars
        ]
        capacity = state.capacity
        self.bars.show_bars(
            bars,
            Capacity(capacity.total_bytes, capacity.usable_bytes, f"usable {capacity.usable_bytes / 2**30:.1f} GiB")
            if capacity else None,
        )  # fmt: skip
        self._show_parts(state)
        self._show_advice(state.advice)

    def render_options(
        self, values: Mapping[str, Any], problems: Mapping[str, str], changed: frozenset[str]
    ) -> None:
        self.form.show_values(values, problems, changed)

    def _show_gpus(self, state: MemoryState) -> None:
        if self.gpu.count() != len(state.gpu_names) + 1:
            self.gpu.clear()
            self.gpu.addItem("This computer", "")
            for name in state.gpu_names:
                self.gpu.addItem(f"What if: {name}", name)
        self.gpu.setCurrentIndex(max(0, self.gpu.findData(state.gpu or "")))

    def _show_parts(self, state: MemoryState) -> None:
        self.table.setHorizontalHeaderItem(2, QTableWidgetItem(state.other_caption or "Other"))
        self.table.setRowCount(len(state.parts))
        for index, part in enumerate(state.parts):
            for place, text in enumerate(
                (part.title, part.bytes_text, part.other_text, part.formula, part.numbers)
            ):
                item = QTableWidgetItem(text)
                item.setToolTip(f"Source: {part.source}" if place >= 3 else "")
                item.setTextAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
                if place == 0:
                    item.setIcon(_swatch(part.name))
                self.table.setItem(index, place, item)
        self.table.resizeRowsToContents()
        self._fit_table()

    def _fit_table(self) -> None:
        height = sum(self.table.rowHeight(i) for i in range(self.table.rowCount()))
        self.table.setFixedHeight(height + self.table.horizontalHeader().height() + 4)

    def resizeEvent(self, event: Any) -> None:
        super().resizeEvent(event)
        self.table.resizeRowsToContents()
        self._fit_table()

    def _show_advice(self, lines: tuple[AdviceLine, ...]) -> None:
        emptied(self.advice)
        for line in lines:
            self.advice.addWidget(self._advice_row(line))
        if not lines:
            self.advice.addWidget(label("Nothing here would save more.", "quiet"))
        self.advice.addStretch(1)

    def _advice_row(self, line: AdviceLine) -> QWidget:
        apply = button("Apply", lambda: self.edited.emit(line.path, line.value))
        apply.setAccessibleName(f"Apply: {line.text}")
        found = row(label(line.text, wraps=True), label(line.saves_text, "quiet"), apply)
        found.setStretch(0, 1)
        return boxed(found)


def _swatch(name: str) -> QIcon:
    pixmap = QPixmap(QSize(24, 24))
    pixmap.fill(theme.part_colour(name))
    if name in theme.HATCHED_PARTS:
        painter = QPainter(pixmap)
        painter.fillRect(pixmap.rect(), Qt.BrushStyle.BDiagPattern)
        painter.end()
    return QIcon(pixmap)
