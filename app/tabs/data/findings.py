"""Data tab, Report and Doctor: what was found, and what a click does about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject

from app.presenters.in_window import in_window
from app.presenters.words import capital
from app.tabs.data.doctor_panel import DoctorPanel
from app.tabs.data.presenters.doctor import Repair, doctor_state, written_text
from app.tabs.data.presenters.report import ReportState, report_state
from app.tabs.data.presenters.rows import HELD_OUT
from app.tabs.data.report_panel import ReportPanel
from qlora_engine.errors import EngineError

if TYPE_CHECKING:
    from app.tabs.data.controller import DataController


class ReportController(QObject):
    def __init__(self, page: DataController, panel: ReportPanel) -> None:
        super().__init__(panel)
        self._page, self._panel = page, panel
        self._known: tuple[Mapping[str, Any], ReportState] | None = None
        job = page.work.job
        panel.row_asked.connect(page.open_row)
        panel.maximum_chosen.connect(lambda tokens: self._set_length(tokens))
        panel.automatic_asked.connect(lambda: self._set_length(None))
        panel.check_asked.connect(page.work.watch.check)
        self._job = job

    def paint(self) -> None:
        report = self._page.report
        if report is not None and (self._known is None or self._known[0] is not report):
            self._known = (report, report_state(report))
        self._panel.show_state(
            self._known[1] if report is not None and self._known else None, *self._page.notice
        )

    def _set_length(self, tokens: int | None) -> None:
        if tokens != self._job.config.data.seq_len:
            self._job.edit("data.seq_len", tokens)
            check_if_possible(self._page)


class DoctorController(QObject):
    def __init__(self, page: DataController, panel: DoctorPanel) -> None:
        super().__init__(panel)
        self._page, self._panel = page, panel
        self._written_of, self._is_writing = "", False
        panel.row_asked.connect(page.open_row)
        panel.held_row_asked.connect(lambda number: page.open_row(number, HELD_OUT))
        panel.repair_asked.connect(self._repair)
        panel.write_asked.connect(self._write)
        panel.use_asked.connect(page.work.job.choose_data)
        panel.check_asked.connect(page.work.watch.check)

    def paint(self) -> None:
        work = self._page.work
        report = self._page.report
        findings = work.watch.findings or (() if report is None else tuple(report.get("findings", ())))
        settings = work.job.config.data
        is_dropped = self._is_writing and not work.watch.desk.is_asked("write_clean")
        if is_dropped or (self._written_of and self._written_of != settings.path):
            self._written_of, self._is_writing = "", False
            self._panel.show_written("", "accent")
        notice = ("", "") if work.watch.findings else self._page.notice
        self._panel.show_state(doctor_state(findings, settings, is_checked=report is not None), *notice)

    def _repair(self, repair: Repair) -> None:
        """One click mends it, and the data are read anew."""
        self._page.work.job.edit(repair.setting, repair.value)
        check_if_possible(self._page)

    def _write(self, path: str) -> None:
        self._written_of, self._is_writing = self._page.work.job.config.data.path, True
        self._panel.show_written("Writing the rows", "accent")
        self._page.work.watch.desk.ask("write_clean", {"path": path}, self._written, self._not_written)

    def _written(self, answer: Mapping[str, Any]) -> None:
        self._is_writing = False
        self._panel.show_written(written_text(answer), "good", str(answer["path"]))

    def _not_written(self, error: EngineError) -> None:
        self._is_writing = False
        self._panel.show_written(in_window(f"{capital(error.message)}. {capital(error.hint)}."), "bad")


def check_if_possible(page: DataController) -> None:
    """Read the data anew at once: the person has just said something about them."""
    work = page.work
    if work.base.facts_error is None and not work.job.draft.issues:
        work.watch.check()
