"""Data tab, Rows: every row of the data, as it is stored beside what the model is fed of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QCheckBox, QLineEdit, QPlainTextEdit, QSplitter, QStackedWidget, QWidget

from app.tabs.data.presenters.rows import Rendered, RowDetail
from app.tabs.data.widgets.row_list import RowList
from app.tabs.data.widgets.token_chips import TokenChips, legend
from app.widgets.form import QuietCombo
from app.widgets.kit import Elided, Notice, boxed, button, column, label, row

SPARE = 6
"""Pixels beyond what Qt asks for a list's longest words, whose last letters it would leave out else."""


class RowsPanel(QWidget):
    """Signals: `set_chosen(rows_of)`, `kind_chosen(kind)`, `search_asked(text)`, `number_asked(number)`, `step_asked(by)`, `batch_wanted(bool)`,
    `leave_asked`, `check_asked`."""

    set_chosen = Signal(str)
    kind_chosen = Signal(str)
    search_asked = Signal(str)
    number_asked = Signal(int)
    step_asked = Signal(int)
    batch_wanted = Signal(bool)
    leave_asked = Signal()
    check_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.notice = Notice()
        self.list = RowList()
        self.parts = QSplitter(Qt.Orientation.Vertical)
        self.parts.setChildrenCollapsible(False)
        self.parts.addWidget(self.list)
        self.parts.addWidget(self._detail())
        self.parts.setStretchFactor(0, 2)
        self.parts.setStretchFactor(1, 3)
        self.body = boxed(column(self._choosing(), self.parts))
        outer = column(self.notice, self.body, None)
        outer.setStretch(1, 1000)
        self.setLayout(outer)

    def _choosing(self) -> QWidget:
        self.sets = _combo("Whose rows", self.set_chosen.emit)
        self.kinds = _combo("Which rows", self.kind_chosen.emit)
        self.search = QLineEdit()
        self.search.setAccessibleName("Search the rows")
        self.search.setPlaceholderText("Search the rows")
        self.search.setClearButtonEnabled(True)
        self.search.returnPressed.connect(lambda: self.search_asked.emit(self.search.text().strip()))
        self.search.textChanged.connect(self._search_changed)
        self.number = QLineEdit()
        self.number.setAccessibleName("Row number")
        self.number.setPlaceholderText("Row")
        self.number.setMaximumWidth(84)
        self.number.returnPressed.connect(self._to_number)
        found = row(self.sets, self.kinds, self.search, self.number)
        found.setStretch(2, 1)
        return boxed(found)

    def _detail(self) -> QWidget:
        self.where, self.problem = Elided(role="strong"), label(wraps=True, tone="bad")
        self.position = label(role="small")
        self.chips = TokenChips()
        self.token = Elided(role="small")
        self.chips.token_shown.connect(self.token.setText)
        self.batch = QCheckBox("Padded as in a batch of four")
        self.batch.toggled.connect(self.batch_wanted)
        self.legends = QStackedWidget()
        self.legends.addWidget(legend("tmsc"))
        self.legends.addWidget(legend("tmsp"))
        fed = boxed(
            column(
                label("As the model is fed it", "strong"),
                self.legends,
                self.chips,
                self.token,
                self.batch,
                gap=4,
            )
        )
        fed.layout().setStretch(2, 1)  # type: ignore[union-attr]
        self.raw, self.read = _text("Row as it is stored"), _text("Row as it was read")
        stored = QSplitter(Qt.Orientation.Vertical)
        stored.setChildrenCollapsible(False)
        stored.addWidget(_titled("As it is stored", self.raw))
        stored.addWidget(_titled("As it was read", self.read))
        across = QSplitter(Qt.Orientation.Horizontal)
        across.setChildrenCollapsible(False)
        across.addWidget(stored)
        across.addWidget(fed)
        across.setStretchFactor(0, 2)
        across.setStretchFactor(1, 3)
        self.previous = button(
            "Previous", lambda: self.step_asked.emit(-1), tip="The row above (Up in the list)"
        )
        self.next = button("Next", lambda: self.step_asked.emit(1), tip="The row below (Down in the list)")
        self.leave = button("Leave this row out", self.leave_asked.emit)
        top = row(self.where, self.position, self.leave, self.previous, self.next)
        top.setStretch(0, 1)
        found = column(top, self.problem, across, gap=4)
        found.setContentsMargins(0, 6, 0, 0)
        found.setStretch(2, 1)
        return boxed(found)

    def show_choices(
        self, sets: Sequence[tuple[str, str]], rows_of: str, kinds: Sequence[tuple[str, str]], kind: str
    ) -> None:
        """What can be chosen, and what is."""
        _offer(self.sets, sets, rows_of)
        _offer(self.kinds, kinds, kind)

    def show_leave(self, text: str) -> None:
        """What can be done with the shown row, if anything."""
        self.leave.setText(text)
        self.leave.setVisible(bool(text))

    def show_rows(self, notice: str, hint: str, is_ready: bool) -> None:
        """The rows, or why there are none."""
        self.body.setVisible(is_ready)
        actions = () if is_ready or not hint else (("Check data", self.check_asked.emit),)
        self.notice.say(notice, hint, "accent", *actions)

    def show_detail(self, detail: RowDetail | None) -> None:
        self.where.setText(detail.headline if detail else "")
        self.problem.setText(f"{detail.problem}." if detail and detail.problem else "")
        self.problem.setVisible(bool(detail and detail.problem))
        self.raw.setPlainText(detail.raw if detail else "")
        self.read.setPlainText(detail.said if detail else "")
        if detail is None or not self.batch.isChecked():
            self.show_tokens(detail.rendered if detail else (), is_batch=False)

    def show_tokens(self, rows: Sequence[Rendered], *, is_batch: bool) -> None:
        self.legends.setCurrentIndex(int(is_batch))
        self.token.setText("")
        self.chips.show_rows(rows)

    def _search_changed(self, text: str) -> None:
        if not text:
            self.search_asked.emit("")

    def _to_number(self) -> None:
        text = self.number.text().replace(",", "").strip()
        if text.isascii() and text.isdigit():
            self.number_asked.emit(int(text))


def _combo(name: str, chosen: Callable[[str], None]) -> QuietCombo:
    found = QuietCombo()
    found.setAccessibleName(name)
    found.activated.connect(lambda index: chosen(found.itemData(index)))
    found.setSizeAdjustPolicy(QuietCombo.SizeAdjustPolicy.AdjustToContents)  # what is offered changes
    return found


def _offer(combo: QuietCombo, choices: Sequence[tuple[str, str]], chosen: str) -> None:
    known = [(combo.itemData(place), combo.itemText(place)) for place in range(combo.count())]
    if known != list(choices):
        combo.clear()
        for value, words in choices:
            combo.addItem(words, value)
        combo.ensurePolished()
        combo.setMinimumWidth(combo.sizeHint().width() + SPARE)
    combo.setCurrentIndex(max(0, combo.findData(chosen)))


def _text(name: str) -> QPlainTextEdit:
    found = QPlainTextEdit()
    found.setReadOnly(True)
    found.setAccessibleName(name)
    found.setMinimumHeight(44)
    return found


def _titled(title: str, content: QWidget) -> QWidget:
    found = column(label(title, "strong"), content, gap=4)
    found.setStretch(1, 1)
    return boxed(found)
