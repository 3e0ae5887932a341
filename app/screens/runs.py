"""Runs page: the history, one run's curves and facts, and what can be done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, QTimer, QUrl, Signal
from PySide6.QtGui import QColor, QDesktopServices, QResizeEvent
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
)

from app import theme
from app.presenters.runs import COLUMNS, RunsState
from app.presenters.words import capital
from app.theme import GAP_WIDE
from app.widgets.kit import Card, Facts, Notice, button, row, scrolled, set_tip
from app.widgets.page import Page

if TYPE_CHECKING:
    from app.screens.train_charts import MemoryView
    from app.widgets.charts import Chart


NAME, NARROWEST_NAME, WIDEST_NAME = 0, 180, 420
"""The column of the names: never so narrow that nothing of them is left; the others are reached by scrolling."""


class RunsScreen(Page):
    """Signals: `chosen(run_id)`, `resume_asked`, `try_asked`, `export_asked`, `reuse_asked`, `delete_asked`, `refresh_asked`."""

    chosen = Signal(str)
    resume_asked = Signal()
    try_asked = Signal()
    export_asked = Signal()
    reuse_asked = Signal()
    delete_asked = Signal()
    refresh_asked = Signal()

    def __init__(self) -> None:
        super().__init__("Runs", "Everything that was trained here", scrolls=False)
        self.resume = button("Resume", self.resume_asked.emit, "primary")
        self.buttons.addLayout(row(button("Refresh", self.refresh_asked.emit), self.resume))
        self.table = QTableWidget(0, len(COLUMNS))
        self.table.setAccessibleName("Runs")
        self.table.setHorizontalHeaderLabels(COLUMNS)
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(34)
        self.table.setShowGrid(False)
        self.table.setMinimumHeight(140)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.setTabKeyNavigation(False)
        header = self.table.horizontalHeader()
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft)
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(NAME, QHeaderView.ResizeMode.Interactive)
        self.table.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.table.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.table.currentCellChanged.connect(self._choose)
        self._fit = QTimer(self, singleShot=True, interval=0)  # once the other columns know their widths
        self._fit.timeout.connect(self._fit_names)
        self.facts = Facts()
        self.notices = Notice()
        self.chat = button("Try it", self.try_asked.emit)
        self.export = button("Export", self.export_asked.emit)
        self.reuse = button("Use these settings", self.reuse_asked.emit)
        self.folder = button("Open folder", self._open)
        self.delete = button("Delete\u2026", self.delete_asked.emit, "danger")
        self.details = Card("Details").add(
            self.notices, self.facts, row(self.chat, self.export, None), row(self.reuse, self.folder, None, self.delete),
        )  # fmt: skip
        self.details.body.addStretch(1)
        self.chart_place = QVBoxLayout()
        lower = QHBoxLayout()
        lower.setSpacing(GAP_WIDE)
        lower.addWidget(self.details, 4)
        lower.addLayout(self.chart_place, 5)
        self.content.addWidget(self.table, 2)
        self.content.addLayout(lower, 5)
        self.chart: Chart | None = None
        self.memory: MemoryView | None = None
        self._is_painting = False
        self._ids: tuple[str, ...] = ()
        self._path = ""

    def set_chart(self, chart: Chart) -> None:
        self.chart = chart
        self.chart_place.addWidget(chart, 1)

    def set_memory(self, view: MemoryView) -> None:
        """The run's memory over time, drawn from its kept trace."""
        self.memory = view
        self.memory_area = scrolled(view)
        self.chart_place.addWidget(self.memory_area, 2)

    def show_memory(self, is_kept: bool) -> None:
        """A run without a trace has no picture of its memory."""
        self.memory_area.setVisible(is_kept)

    def show_state(self, state: RunsState) -> None:
        self._is_painting = True
        self._ids = tuple(line.run_id for line in state.lines)
        self.table.setRowCount(len(state.lines))
        for place, line in enumerate(state.lines):
            for index, text in enumerate(line.cells):
                item = QTableWidgetItem(text)
                set_tip(item, text)
                if index == 1 and line.tone:
                    item.setForeground(QColor(getattr(theme.tokens(), line.tone)))
                self.table.setItem(place, index, item)
            if state.chosen is line:
                self.table.setCurrentCell(place, 0)
        self._is_painting = False
        self._fit.start()
        chosen = state.chosen
        self.notice.say("" if state.lines else "Nothing was trained here yet.")
        self.details.setVisible(chosen is not None)
        if self.chart is not None:
            self.chart.setVisible(chosen is not None)
        self.facts.set_rows(state.rows)
        self.notices.say("\n".join(capital(n) for n in state.notices), "", "warning")
        self.resume.setEnabled(chosen is not None and chosen.is_resumable)
        self.chat.setEnabled(chosen is not None and chosen.is_finished)
        self.export.setEnabled(chosen is not None and chosen.is_finished)
        self.delete.setEnabled(chosen is not None and not chosen.is_live)
        self._path = str(chosen.path) if chosen is not None else ""

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit.start()

    def _fit_names(self) -> None:
        """What the other columns leave, within bounds."""
        header = self.table.horizontalHeader()
        room = self.table.viewport().width() - (header.length() - header.sectionSize(NAME))
        self.table.setColumnWidth(NAME, min(max(room, NARROWEST_NAME), WIDEST_NAME))

    def _choose(self, line: int, *_: int) -> None:
        if not self._is_painting and 0 <= line < len(self._ids):
            self.chosen.emit(self._ids[line])

    def _open(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(self._path))
