"""Model page: what can be chosen on the left, the facts of what is on the right."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QStandardItem, QStandardItemModel
from PySide6.QtWidgets import QCompleter, QFileDialog, QLineEdit, QListWidget, QListWidgetItem

from app.presenters.model import ModelLine, ModelState
from app.tabs.model.quality_panel import QualityPanel
from app.widgets.kit import Card, Facts, Notice, SideBySide, boxed, button, column, label, row, set_tip
from app.widgets.page import Page
from app.widgets.share_bar import ShareBar


class ModelScreen(Page):
    """Signals: `chosen(name)`, `folder_added(path)`, `browse_asked`, `resize_asked`, `prepare_asked`, `cancel_asked`, `next_asked`."""

    chosen = Signal(str)
    folder_added = Signal(str)
    browse_asked = Signal()
    resize_asked = Signal()
    prepare_asked = Signal()
    cancel_asked = Signal()
    next_asked = Signal()

    def __init__(self) -> None:
        super().__init__("Model", "The base model: in 4 bits, and frozen")
        self.next = button("Choose data", self.next_asked.emit, "primary")
        self.buttons.addWidget(self.next)
        self.list = QListWidget()
        self.list.setAccessibleName("Models on this computer")
        self.list.setWordWrap(True)
        self.list.setMinimumHeight(220)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.list.itemClicked.connect(self._choose)
        self.list.itemActivated.connect(self._choose)
        self.name = QLineEdit()
        self.name.setPlaceholderText("A known name or a Hugging Face id, such as meta-llama/Llama-3.2-1B")
        self.name.setAccessibleName("Model by name")
        self.name.returnPressed.connect(self._use_name)
        left = Card("Models on this computer").add(
            self.list,
            row(button("Open folder\u2026", self._open_folder), button("Open GGUF file\u2026", self._open_gguf), None),
            row(label("Or by name", "small"), None, button("Known models\u2026", self.browse_asked.emit)),
            row(self.name, button("Use", self._use_name)),
        )  # fmt: skip
        self.title_text, self.subtitle = label(role="heading", wraps=True), label(role="quiet", wraps=True)
        self.facts = Facts()
        self.state_notice = Notice()
        self.progress = ShareBar()
        self.progress_text = label(role="small")
        self.prepare = button("Download now", self.prepare_asked.emit)
        self.cancel = button("Cancel", self.cancel_asked.emit)
        self.progress_row = boxed(row(boxed(column(self.progress_text, self.progress, gap=4)), self.cancel))
        right = Card().add(self.title_text, self.subtitle, self.state_notice, self.progress_row)
        right.add(row(self.prepare, None), self.facts)
        right.body.addStretch(1)
        self.content.addWidget(SideBySide(left, right, stretch=(4, 5), needs=620), 1)
        self.quality = QualityPanel()
        self.content.addWidget(self.quality)
        self._lines: tuple[tuple[ModelLine, ...], bool] | None = None

    def show_state(self, state: ModelState) -> None:
        self._show_lines(state.lines, state.is_listing)
        self.title_text.setText(state.title)
        self.subtitle.setText(state.subtitle)
        self.facts.set_rows(state.rows)
        resizing = [(state.resize_text, self.resize_asked.emit)] if state.resize_text else []
        self.state_notice.say(state.notice, state.notice_hint, state.notice_tone, *resizing)
        self.prepare.setVisible(bool(state.prepare_text))
        self.prepare.setText(state.prepare_text or "Download now")
        self.progress_row.setVisible(state.is_preparing)
        self.progress_text.setText(state.preparing_text)
        self.progress.show_share(state.preparing_share)

    def offer_names(self, names: tuple[tuple[str, str], ...]) -> None:
        """Names that are known, offered while one is typed: any part of a name finds it."""
        offered = QStandardItemModel(self)
        for name, text in names:
            item = QStandardItem(text)
            item.setData(name, Qt.ItemDataRole.UserRole)
            offered.appendRow(item)
        completer = QCompleter(offered, self)
        completer.setCompletionRole(Qt.ItemDataRole.UserRole)
        completer.setFilterMode(Qt.MatchFlag.MatchContains)
        completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        self.name.setCompleter(completer)

    def _show_lines(self, lines: tuple[ModelLine, ...], is_listing: bool) -> None:
        """Left alone while nothing is new: whoever goes through it by the arrows stays where they are."""
        if (lines, is_listing) == self._lines:
            return
        self._lines = (lines, is_listing)
        self.list.clear()
        if is_listing:
            item = QListWidgetItem("Looking for models\u2026")
            item.setFlags(Qt.ItemFlag.NoItemFlags)
            self.list.addItem(item)
        for line in lines:
            item = QListWidgetItem(f"{line.title}\n{line.problem or line.detail}")
            item.setData(Qt.ItemDataRole.UserRole, line.name)
            set_tip(item, line.problem or line.name)
            self.list.addItem(item)
            if line.is_chosen:
                self.list.setCurrentItem(item)

    def _choose(self, item: QListWidgetItem) -> None:
        name = item.data(Qt.ItemDataRole.UserRole)
        if name:
            self.chosen.emit(name)

    def _use_name(self) -> None:
        if self.name.text().strip():
            self.chosen.emit(self.name.text().strip())

    def _open_folder(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Choose a model folder")
        if folder:
            self.folder_added.emit(folder)
            self.chosen.emit(folder)

    def _open_gguf(self) -> None:
        file, _ = QFileDialog.getOpenFileName(self, "Choose a GGUF file", "", "GGUF models (*.gguf)")
        if file:
            self.chosen.emit(file)
