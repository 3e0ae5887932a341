"""The known models in a window of their own: searched, filtered, ordered, and one chosen."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from PySide6.QtCore import QSortFilterProxyModel, Qt, QTimer, Signal
from PySide6.QtGui import QStandardItem, QStandardItemModel
from PySide6.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QHeaderView,
    QLineEdit,
    QTableView,
    QWidget,
)

from app.presenters.words import count_text
from app.tabs.model.known import BY_SIZE, KnownRow, Wish, heads
from app.theme import GAP, GAP_PAGE, GAP_WIDE
from app.widgets.kit import button, column, label, row, set_tip
from app.widgets.tab_order import OrderedDialog
from qlora_engine.memory.choosing import USUAL_LENGTH

WIDTH = 1180
SETTLE_MS = 150
"""Typing is followed when it rests for so long."""
KEY, NAME, SHOWN = (Qt.ItemDataRole.UserRole + place for place in range(3))
YES, NO = "yes", "no"


class KnownModelsDialog(OrderedDialog):
    """Signals: `wished(Wish)` when other rows are to be shown, `chosen(name)`."""

    wished = Signal(object)
    chosen = Signal(str)

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setWindowTitle("Known models \u2013 QLoRA Studio")
        self.resize(min(WIDTH, parent.width() - 2 * GAP_WIDE), 600)
        self.query = QLineEdit()
        self.query.setPlaceholderText("Words of a name, a type or a licence")
        self.query.setAccessibleName("Search the known models")
        self.fits, self.chat, self.here = (
            QCheckBox(text)
            for text in (
                f"Fits with {count_text(USUAL_LENGTH)} tokens a row",
                "Tuned to chat",
                "On this computer",
            )
        )
        self.fits.setChecked(True)
        self.items = QStandardItemModel(0, len(heads()), self)
        self.items.setHorizontalHeaderLabels(list(heads()))
        self.order = QSortFilterProxyModel(self)
        self.table = QTableView()
        self.summary = label("", "small", wraps=True)
        self.use = button("Use this model", self._choose, "primary")
        self._soon = QTimer(self, singleShot=True, interval=SETTLE_MS)
        self._set_up_table()
        self._connect()
        layout = column(
            self.query, row(self.fits, self.chat, self.here, None, gap=GAP_WIDE), self.table, self.summary,
            row(None, button("Cancel", self.reject), self.use), gap=GAP,
        )  # fmt: skip
        layout.setContentsMargins(GAP_PAGE, GAP_WIDE, GAP_PAGE, GAP_WIDE)
        self.setLayout(layout)

    @property
    def wish(self) -> Wish:
        boxes = (self.fits, self.chat, self.here)
        return Wish(self.query.text().strip(), *(box.isChecked() for box in boxes))

    @property
    def name(self) -> str:
        """Of the chosen row; empty without one."""
        index = self.table.currentIndex()
        return str(index.siblingAtColumn(0).data(NAME)) if index.isValid() else ""

    def fill(self, rows: Sequence[KnownRow]) -> None:
        """Every row, in the order that was chosen."""
        self.items.setRowCount(0)
        for one in rows:
            self.items.appendRow([_item(one, place) for place in range(len(heads()))])
        self.order.setFilterFixedString("")
        self.table.resizeColumnsToContents()

    def show_only(self, names: Collection[str], summary: str) -> None:
        """The chosen model stays chosen where it is still shown, else the first one is."""
        for place in range(self.items.rowCount()):
            item = self.items.item(place, 0)
            item.setData(YES if item.data(NAME) in names else NO, SHOWN)
        self.order.setFilterFixedString(YES)
        if not self.table.currentIndex().isValid() and self.order.rowCount():
            self.table.setCurrentIndex(self.order.index(0, 0))
        self.summary.setText(summary)
        self.use.setEnabled(bool(self.name))

    def _set_up_table(self) -> None:
        self.order.setSourceModel(self.items)
        self.order.setSortRole(KEY)
        self.order.setFilterRole(SHOWN)
        self.order.setFilterKeyColumn(0)
        self.order.setDynamicSortFilter(False)
        self.table.setModel(self.order)
        self.table.setAccessibleName("Known models")
        self.table.setSortingEnabled(True)
        self.table.sortByColumn(BY_SIZE, Qt.SortOrder.DescendingOrder)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setTabKeyNavigation(False)
        self.table.verticalHeader().hide()
        self.table.horizontalHeader().setHighlightSections(False)
        self.table.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft)
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        self.table.horizontalHeader().setStretchLastSection(True)

    def _connect(self) -> None:
        self._soon.timeout.connect(self._tell)
        self.query.textChanged.connect(lambda *_: self._soon.start())
        for box in (self.fits, self.chat, self.here):
            box.toggled.connect(lambda *_: self._tell())
        self.table.selectionModel().currentChanged.connect(lambda *_: self.use.setEnabled(bool(self.name)))
        self.table.activated.connect(lambda *_: self._choose())

    def _tell(self) -> None:
        self.wished.emit(self.wish)

    def _choose(self) -> None:
        if self.name:
            self.chosen.emit(self.name)
            self.accept()


def _item(one: KnownRow, place: int) -> QStandardItem:
    item = QStandardItem(one.texts[place])
    item.setData(one.keys[place], KEY)
    item.setData(one.name, NAME)
    set_tip(item, one.texts[place])
    return item
