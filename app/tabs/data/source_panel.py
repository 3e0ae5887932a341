"""Data tab, Source: where the rows come from, what they are, and which column is what beside the raw rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QLineEdit,
    QTableWidget,
    QTableWidgetItem,
    QWidget,
)

from app.tabs.data.presenters.source import SourceState
from app.tabs.data.widgets.mapping_form import MappingForm
from app.tabs.data.widgets.source_list import SourceList
from app.theme import GAP_WIDE
from app.widgets.form import KnobForm
from app.widgets.kit import Card, Facts, Notice, SideBySide, boxed, button, column, label, row, set_tip
from qlora_engine.config import all_knobs

FILES = "Datasets (*.json *.jsonl *.ndjson *.csv *.tsv *.parquet *.arrow *.txt *.md *.gz *.zst *.zip);;All files (*)"
READING = ("data.encoding", "data.split", "data.max_rows", "data.tree_paths", "data.overlap")
ROW_HEIGHT, NUMBER_WIDTH, NARROWEST = 32, 56, 80
LONG = 80
"""Characters beyond which a longer text makes its column no wider."""


class SourcePanel(QWidget):
    """Signals: `path_chosen(str)`, `sources_added(list)`, `edited(path, value)`, `reset_asked(path)`, `column_chosen(field,
    column)`, `weight_chosen(path, weight)`, `remove_asked(path)`, `write_asked`."""

    path_chosen = Signal(str)
    sources_added = Signal(list)
    edited = Signal(str, object)
    reset_asked = Signal(str)
    column_chosen = Signal(str, str)
    weight_chosen = Signal(str, float)
    remove_asked = Signal(str)
    write_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        left = column(self._choosing(), self._reading(), self._mixing(), None, gap=GAP_WIDE)
        right = column(self._describing(), self._first_rows(), None, gap=GAP_WIDE)
        right.setStretch(1, 1)
        outer = column(SideBySide(boxed(left), boxed(right), stretch=(4, 5), needs=760))
        self.setLayout(outer)
        self._last: tuple[Any, ...] = ()
        self._is_expert = False

    def _choosing(self) -> Card:
        self.path = QLineEdit()
        self.path.setAccessibleName("Dataset")
        self.path.setPlaceholderText("File, folder, or Hugging Face dataset id")
        self.path.editingFinished.connect(lambda: self.path_chosen.emit(self.path.text().strip()))
        self.write = button(
            "Write rows\u2026", self.write_asked.emit, tip="A small table of your own, kept as a file"
        )
        return Card("Dataset").add(
            self.path,
            row(button("Open file\u2026", self._open), button("Open folder\u2026", self._open_folder), None),
            row(self.write, button("Use the starter", lambda: self.path_chosen.emit("starter")), None),
            label("Or drop files anywhere on this page, or paste a hub id above.", "small", wraps=True),
        )  # fmt: skip

    def _mixing(self) -> Card:
        self.sources, self.weight_words = SourceList(), label(role="small", wraps=True)
        self.sources.weight_chosen.connect(self.weight_chosen)
        self.sources.remove_asked.connect(self.remove_asked)
        self.other = QLineEdit()
        self.other.setAccessibleName("Dataset to mix in")
        self.other.setPlaceholderText("File or hub id to mix in")
        self.other.returnPressed.connect(self._add_typed)
        add = row(self.other, button("Add\u2026", self._add, tip="What is typed here, else choose files"))
        add.setStretch(0, 1)
        return Card("Mixed in").add(self.sources, self.weight_words, add)

    def _reading(self) -> Card:
        knobs = all_knobs()
        self.format = KnobForm({"data.format": knobs["data.format"]})
        self.form = KnobForm({path: knobs[path] for path in READING})
        self.mapping = MappingForm()
        self.mapping.chosen.connect(self.column_chosen)
        for form in (self.format, self.form):
            form.edited.connect(self.edited)
            form.reset_asked.connect(self.reset_asked)
        self.more = button("Show all options", self._toggle, "link")
        return Card("How it is read").add(self.format, self.mapping, self.form, row(self.more, None))

    def _describing(self) -> Card:
        self.found, self.facts = Notice(), Facts(80)
        return Card("What it is").add(self.found, self.facts)

    def _first_rows(self) -> Card:
        self.table = QTableWidget(0, 0)
        self.table.setAccessibleName("First rows as they are stored")
        self.table.verticalHeader().hide()
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setTabKeyNavigation(False)
        self.table.setWordWrap(False)
        self.table.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.table.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.table.horizontalHeader().setHighlightSections(False)
        self.table.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft)
        self.table.horizontalHeader().setTextElideMode(Qt.TextElideMode.ElideRight)
        self.table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        self.table.setMinimumHeight(260)
        self.first_rows = Card("First rows, as they are stored").add(self.table)
        return self.first_rows

    def show_state(self, path: str, state: SourceState) -> None:
        if not self.path.hasFocus():
            self.path.setText(path)
        self.found.say(state.headline, state.evidence, state.tone)
        self.facts.set_rows(state.facts)
        self.facts.setVisible(bool(state.facts))
        self.mapping.show_fields(state.fields)
        self.sources.show_sources(state.sources)
        self.weight_words.setText(state.weight_text)
        self.first_rows.setVisible(bool(state.cells))
        if (state.titles, state.cells) != self._last:
            self._last = (state.titles, state.cells)
            self._fill(state)

    def render_options(
        self, values: Mapping[str, Any], problems: Mapping[str, str], changed: frozenset[str]
    ) -> None:
        self.format.show_values(values, problems, changed)
        self.form.show_values(values, problems, changed, self._is_expert)
        self._options = (values, problems, changed)

    def _fill(self, state: SourceState) -> None:
        self.table.setColumnCount(len(state.titles))
        self.table.setHorizontalHeaderLabels(list(state.titles))
        self.table.setRowCount(len(state.cells))
        for place, cells in enumerate(state.cells):
            for across, text in enumerate(cells):
                item = QTableWidgetItem(" ".join(text.split()))
                set_tip(item, text)
                self.table.setItem(place, across, item)
        header, room = self.table.horizontalHeader(), self.table.viewport().width() - NUMBER_WIDTH
        longest = [
            max((min(LONG, len(row[a])) for row in state.cells), default=0) + 8
            for a in range(len(state.titles))
        ]
        for across in range(1, len(state.titles)):
            share = room * longest[across] // sum(longest[1:])
            self.table.setColumnWidth(across, max(header.sectionSizeHint(across) + 12, NARROWEST, share))
        self.table.setColumnWidth(0, NUMBER_WIDTH)
        header.setStretchLastSection(True)

    def _toggle(self) -> None:
        self._is_expert = not self._is_expert
        self.more.setText("Show fewer options" if self._is_expert else "Show all options")
        self.render_options(*self._options)

    def _open(self) -> None:
        file, _ = QFileDialog.getOpenFileName(self, "Choose a dataset", "", FILES)
        if file:
            self.path_chosen.emit(file)

    def _open_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Choose a folder of datasets")
        if folder:
            self.path_chosen.emit(folder)

    def _add_typed(self) -> None:
        text = self.other.text().strip()
        if text:
            self.other.clear()
            self.sources_added.emit([text])

    def _add(self) -> None:
        if self.other.text().strip():
            self._add_typed()
            return
        files, _ = QFileDialog.getOpenFileNames(self, "Choose datasets to mix in", "", FILES)
        if files:
            self.sources_added.emit(files)
