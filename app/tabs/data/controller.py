"""Data tab: its head, its tabs, and what they have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

from PySide6.QtCore import QObject, QTimer
from PySide6.QtWidgets import QWidget

from app.presenters.problems import DOCTOR as DOCTOR_OPTION
from app.studio import Studio
from app.tabs.data.findings import DoctorController, ReportController
from app.tabs.data.presenters.head import data_state, report_notice
from app.tabs.data.presenters.rows import DATA
from app.tabs.data.presenters.source import with_sources
from app.tabs.data.rows import RowsController
from app.tabs.data.screen import DOCTOR, REPORT, ROWS, SOURCE, SPLIT, TAB_NAMES, DataScreen
from app.tabs.data.source import SourceController
from app.tabs.data.split import SplitController
from app.widgets.form import KnobForm

IDLE_MS = 40
POLISHED_AT_ONCE = 40


class Tab(Protocol):
    """What a tab's controller can do: `paint` follows every change, also while the tab is hidden."""

    def paint(self) -> None: ...


class DataController(QObject):
    """`report` is the newest one of these data, also while they are read anew after a change of settings."""

    def __init__(self, studio: Studio, screen: DataScreen) -> None:
        super().__init__(screen)
        self.studio, self.screen = studio, screen
        self.work = work = studio.workspace
        self.report: Mapping[str, Any] | None = None
        self._report_of = ""
        self.tabs: dict[str, Tab] = {}
        for signal in (work.data.changed, work.job.changed, work.watch.changed, work.base.facts_changed):
            signal.connect(self.paint)
        screen.check_asked.connect(work.watch.check)
        screen.cancel_asked.connect(work.watch.cancel)
        screen.tab_wanted.connect(self.show_tab)
        screen.files_dropped.connect(self._take_files)
        self._unpolished: list[QWidget] = []
        self._idle = QTimer(self, singleShot=True, interval=IDLE_MS)
        self._idle.timeout.connect(self._prepare_more)
        screen.shown.connect(self._idle.start)
        screen.shown.connect(self.paint)
        self.show_tab(SOURCE)

    @property
    def is_new(self) -> bool:
        """True when the report is about the settings as they are."""
        return self.report is not None and self.report is self.work.data.report

    @property
    def notice(self) -> tuple[str, str]:
        return report_notice(
            is_known=self.report is not None, is_new=self.is_new, is_checking=bool(self.work.data.progress)
        )

    def show_tab(self, name: str) -> None:
        self._ensure(name)
        self.screen.show_tab(name)
        self.paint()

    def open_option(self, path: str) -> None:
        """Show the tab on which an option, or what the doctor found, is dealt with, and focus the option."""
        if path == DOCTOR_OPTION:
            self.show_tab(DOCTOR)
            return
        for name in (SOURCE, SPLIT):
            self.show_tab(name)
            form = next((f for f in self.screen.panels[name].findChildren(KnobForm) if path in f.rows), None)
            if form is not None:
                form.rows[path].setVisible(True)
                form.rows[path].focus()
                return
        self.show_tab(SOURCE)

    def open_row(self, number: int, rows_of: str = DATA) -> None:
        """Show a row that a report or a finding names."""
        self.show_tab(ROWS)
        rows = self.tabs[ROWS]
        assert isinstance(rows, RowsController)
        rows.open_row(number, rows_of)

    def paint(self) -> None:
        work = self.work
        path = work.job.config.data.path
        if work.data.report is not None:
            self.report, self._report_of = work.data.report, path
        elif self._report_of != path:
            self.report = None
        can_check = work.base.facts_error is None and not work.job.draft.issues
        error = work.data.error or work.watch.place.problem
        self.screen.show_state(
            data_state(error, work.data.progress, work.watch.findings, can_check=can_check)
        )
        for tab in self.tabs.values():
            tab.paint()

    def _ensure(self, name: str) -> None:
        if name not in self.tabs:
            self.tabs[name] = getattr(self, f"_make_{name}")()

    def _prepare_more(self) -> None:
        """Make the next tab, or apply the style sheet to some of what is made: ahead of time and in turns, so that opening
        one is quick."""
        missing = next((name for name in TAB_NAMES if name not in self.tabs), None)
        if missing is not None:
            self._ensure(missing)
            self._unpolished.extend(self.screen.panels[missing].findChildren(QWidget))
        some, self._unpolished = self._unpolished[:POLISHED_AT_ONCE], self._unpolished[POLISHED_AT_ONCE:]
        for widget in some:
            with contextlib.suppress(RuntimeError):  # replaced meanwhile
                widget.ensurePolished()
        if missing is not None or self._unpolished:
            self._idle.start()

    def _take_files(self, files: list[str]) -> None:
        """The first is the dataset; the others are mixed in."""
        self.work.job.choose_data(files[0])
        if len(files) > 1:
            self.work.job.edit("data.more", with_sources(self.work.job.config.data, files[1:]))
        self.show_tab(SOURCE)

    # ------------------------------------------------------------ one maker per tab

    def _make_source(self) -> Tab:
        from app.tabs.data.source_panel import SourcePanel

        panel = SourcePanel()
        self.screen.add_panel(SOURCE, panel)
        return SourceController(self, panel)

    def _make_rows(self) -> Tab:
        from app.tabs.data.rows_panel import RowsPanel

        panel = RowsPanel()
        self.screen.add_panel(ROWS, panel, scrolls=False)
        return RowsController(self, panel)

    def _make_report(self) -> Tab:
        from app.tabs.data.report_panel import ReportPanel

        panel = ReportPanel()
        self.screen.add_panel(REPORT, panel)
        return ReportController(self, panel)

    def _make_doctor(self) -> Tab:
        from app.tabs.data.doctor_panel import DoctorPanel

        panel = DoctorPanel()
        self.screen.add_panel(DOCTOR, panel)
        return DoctorController(self, panel)

    def _make_split(self) -> Tab:
        from app.tabs.data.split_panel import SplitPanel

        panel = SplitPanel()
        self.screen.add_panel(SPLIT, panel)
        return SplitController(self, panel)
