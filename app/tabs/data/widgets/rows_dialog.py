"""A small table to write rows in: questions with their answers, kept as a file."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QGuiApplication, QKeyEvent, QKeySequence
from PySide6.QtWidgets import QHeaderView, QLineEdit, QTableWidget, QTableWidgetItem, QWidget

from app.theme import GAP, GAP_WIDE
from app.widgets.kit import Notice, button, column, label, row
from app.widgets.tab_order import OrderedDialog

TITLES = ("Question or task", "Further input (if any)", "Answer")


class RowsTable(QTableWidget):
    """Always ends in an empty row; what is copied from a spreadsheet can be pasted."""

    def __init__(self) -> None:
        super().__init__(1, len(TITLES))
        self.setHorizontalHeaderLabels(list(TITLES))
        self.setAccessibleName("Rows to learn from")
        self.setWordWrap(True)
        self.setTabKeyNavigation(False)  # while a cell is written in, Tab still goes on to the next one
        self.horizontalHeader().setHighlightSections(False)
        self.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.verticalHeader().setDefaultSectionSize(34)
        self.itemChanged.connect(lambda *_: self._keep_an_empty_row())

    def rows(self) -> list[tuple[str, ...]]:
        """Every row with something in it."""
        found = [
            tuple(self._text(place, across) for across in range(len(TITLES)))
            for place in range(self.rowCount())
        ]
        return [cells for cells in found if any(cell.strip() for cell in cells)]

    def set_rows(self, rows: Sequence[Sequence[str]], at: int = 0, across: int = 0) -> None:
        """Write `rows` from a cell on; what has no column is left out."""
        self.blockSignals(True)
        self.setRowCount(max(self.rowCount(), at + len(rows) + 1))
        for place, cells in enumerate(rows):
            for offset, text in enumerate(cells[: len(TITLES) - across]):
                self.setItem(at + place, across + offset, QTableWidgetItem(text))
        self.blockSignals(False)
        self._keep_an_empty_row()

    def remove_selected(self) -> None:
        for place in sorted({index.row() for index in self.selectedIndexes()}, reverse=True):
            self.removeRow(place)
        self._keep_an_empty_row()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.matches(QKeySequence.StandardKey.Paste):
            text = QGuiApplication.clipboard().text()
            self.set_rows(
                [line.split("\t") for line in text.splitlines()],
                max(0, self.currentRow()),
                max(0, self.currentColumn()),
            )
        else:
            super().keyPressEvent(event)

    def _text(self, place: int, across: int) -> str:
        item = self.item(place, across)
        return item.text() if item is not None else ""

    def _keep_an_empty_row(self) -> None:
        last = self.rowCount() - 1
        if last < 0 or any(self._text(last, across).strip() for across in range(len(TITLES))):
            self.insertRow(last + 1)


class RowsDialog(OrderedDialog):
    """Signals: `save_asked(name, rows)`. It stays open until the rows are kept."""

    save_asked = Signal(str, list)

    def __init__(self, parent: QWidget, name: str = "", rows: Sequence[Sequence[str]] = ()) -> None:
        super().__init__(parent)
        self.setWindowTitle("Rows of your own \u2013 QLoRA Studio")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.resize(820, 520)
        self.name = QLineEdit(name)
        self.name.setAccessibleName("Name")
        self.name.setPlaceholderText("Name")
        self.name.setReadOnly(bool(name))
        self.table, self.notice = RowsTable(), Notice()
        if rows:
            self.table.set_rows(rows)
        top = row(label("Name"), self.name)
        words = label(
            "One row for each thing to learn: what is asked, and the answer as it should be. A form of answer is learned from "
            "some hundred rows. Cells copied from a spreadsheet can be pasted.",
            "small", wraps=True,
        )  # fmt: skip
        layout = column(
            top, words, self.table, self.notice,
            row(button("Remove rows", self.table.remove_selected), None, button("Cancel", self.reject),
                button("Keep rows", self._save, "primary")), gap=GAP,
        )  # fmt: skip
        layout.setContentsMargins(GAP_WIDE, GAP_WIDE, GAP_WIDE, GAP_WIDE)
        self.setLayout(layout)

    def _save(self) -> None:
        self.save_asked.emit(self.name.text(), self.table.rows())
