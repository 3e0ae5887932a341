"""The runs at the left: new, search, filter, and a row each. In a narrow window only their signs are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PySide6.QtCore import QItemSelectionModel, QSize, Qt, Signal
from PySide6.QtGui import QIcon, QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QAbstractItemView,
    QFrame,
    QHBoxLayout,
    QLineEdit,
    QListView,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
)

from app.presenters.run_rows import FILTERS, SORTS, RunRow
from app.widgets.form import QuietCombo
from app.widgets.kit import button, label, set_role, set_tip
from app.widgets.run_rows import RunRowModel, RunRowPainter
from qlora_engine import paths

WIDE, NARROW = 232, 64
"""Pixels: with words, and with signs alone."""


class RunList(QFrame):
    """Signals: `chosen(keys)`, the current one first; `new_asked`; `looked_for(text, filter, sort)`; `delete_asked`,
    `rename_asked`; `help_asked`, `settings_asked`."""

    chosen = Signal(tuple)
    new_asked = Signal()
    looked_for = Signal(str, str, str)
    delete_asked = Signal()
    rename_asked = Signal()
    help_asked = Signal()
    settings_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "rail")
        self.brand = label("QLoRA Studio", "strong")
        self.brand.setContentsMargins(4, 0, 4, 2)
        self.new = button("New run", self.new_asked.emit, tip="Prepare another run (Ctrl+N)")
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search runs")
        self.search.setAccessibleName("Search runs")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._look)
        shown = {name: words for name, (words, _) in FILTERS.items()}
        self.filter = self._make_choice("Which runs are shown", shown)
        self.sort = self._make_choice("Order of the runs", SORTS)
        self.model = RunRowModel()
        self.view = self._make_view()
        self.empty = label("No run is found.", "small", wraps=True)
        self.empty.hide()
        self.help, self.settings = _item("help", "Help"), _item("settings", "Settings")
        self.help.clicked.connect(lambda *_: self.help_asked.emit())
        self.settings.clicked.connect(lambda *_: self.settings_asked.emit())
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 14, 8, 8)
        layout.setSpacing(8)
        for found in (self.brand, self.new, self.search, self.filter, self.sort, self.empty):
            layout.addWidget(found)
        layout.addWidget(self.view, 1)
        self._lower = QHBoxLayout()
        self._lower.setSpacing(4)
        layout.addWidget(self.help)
        layout.addWidget(self.settings)
        self._is_painting = False
        self.is_narrow = False
        self.set_narrow(False)

    def _make_choice(self, title: str, words: Mapping[str, str]) -> QuietCombo:
        choice = QuietCombo()
        choice.setAccessibleName(title)
        for name, text in words.items():
            choice.addItem(text, name)
        choice.activated.connect(self._look)
        return choice

    def _make_view(self) -> QListView:
        view = QListView()
        view.setAccessibleName("Runs")
        view.setModel(self.model)
        view.setProperty("role", "runs")
        self.painter = RunRowPainter(view)
        view.setItemDelegate(self.painter)
        view.setUniformItemSizes(True)
        view.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        view.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        view.setMinimumHeight(60)
        view.selectionModel().selectionChanged.connect(self._choose)
        view.selectionModel().currentChanged.connect(self._choose)
        for key, signal in (("Delete", self.delete_asked), ("F2", self.rename_asked)):
            shortcut = QShortcut(QKeySequence(key), view)
            shortcut.setContext(Qt.ShortcutContext.WidgetShortcut)
            shortcut.activated.connect(signal)
        return view

    def show_rows(self, rows: Sequence[RunRow], chosen: Sequence[str]) -> None:
        """Paint without telling anybody; `chosen` are keys, the current one first."""
        self._is_painting = True
        self.model.set_rows(rows)
        self._select(chosen)
        self._is_painting = False
        self.empty.setVisible(not rows and not self.is_narrow)

    def set_narrow(self, is_narrow: bool) -> None:
        """Signs alone, or with words."""
        self.is_narrow = is_narrow
        self.painter.is_narrow = is_narrow
        set_role(self, fold="narrow" if is_narrow else "wide")
        self.setFixedWidth(NARROW if is_narrow else max(WIDE, self.brand.sizeHint().width() + 24))
        for found in (self.brand, self.search, self.filter, self.sort):
            found.setVisible(not is_narrow)
        self.new.setText("+" if is_narrow else "New run")
        for item, title in ((self.help, "Help"), (self.settings, "Settings")):
            item.setText("" if is_narrow else title)
        self.view.doItemsLayout()

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the selected rows, the current one first."""
        current = self.view.currentIndex()
        indexes = [current, *(i for i in self.view.selectionModel().selectedIndexes() if i != current)]
        chosen = [
            i
            for i in indexes
            if i.isValid() and (len(indexes) == 1 or self.view.selectionModel().isSelected(i))
        ]
        return tuple(self.model.rows[i.row()].key for i in chosen)

    def _select(self, chosen: Sequence[str]) -> None:
        if self.keys == tuple(chosen):
            return
        model = self.view.selectionModel()
        places = {row.key: place for place, row in enumerate(self.model.rows)}
        model.clear()
        for place, key in enumerate(chosen):
            if key in places:
                index = self.model.index(places[key])
                model.select(index, QItemSelectionModel.SelectionFlag.Select)
                if place == 0:
                    model.setCurrentIndex(index, QItemSelectionModel.SelectionFlag.NoUpdate)
                    self.view.scrollTo(index)

    def _choose(self, *_: object) -> None:
        if not self._is_painting and self.keys:
            self.chosen.emit(self.keys)

    def _look(self, *_: object) -> None:
        self.looked_for.emit(self.search.text(), self.filter.currentData(), self.sort.currentData())


def _item(name: str, title: str) -> QPushButton:
    found = QPushButton(QIcon(str(paths.resources_dir() / "icons" / f"page-{name}.svg")), title)
    found.setIconSize(QSize(18, 18))
    found.setProperty("role", "nav")
    found.setCursor(Qt.CursorShape.PointingHandCursor)
    found.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    found.setAccessibleName(title)
    set_tip(found, title)
    return found
