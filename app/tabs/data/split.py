"""Data tab, Split and reasoning: the options, and an example of what each policy on reasoning does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject

from app.controllers.options import option_values
from app.tabs.data.presenters.split import split_state
from app.tabs.data.screen import SPLIT
from app.tabs.data.split_panel import SplitPanel

if TYPE_CHECKING:
    from app.tabs.data.controller import DataController


class SplitController(QObject):
    def __init__(self, page: DataController, panel: SplitPanel) -> None:
        super().__init__(panel)
        self._page, self._panel = page, panel
        self._reasoning: Mapping[str, Any] | None = None
        self._asked_of: object = None
        panel.edited.connect(page.work.job.edit)
        panel.reset_asked.connect(page.work.job.reset_option)

    def paint(self) -> None:
        work = self._page.work
        data = work.job.config.data
        report = work.data.report
        is_seen = self._page.screen.isVisible() and self._page.screen.current == SPLIT
        if report is not None and report is not self._asked_of and is_seen:
            self._asked_of = report
            work.watch.desk.ask("reasoning", {"chat_template": data.chat_template}, self._take)
        self._panel.show_state(
            split_state(data, work.job.config.training.seed, self._page.report, self._reasoning)
        )
        self._panel.render_options(*option_values(work.job.draft))

    def _take(self, answer: Mapping[str, Any]) -> None:
        self._reasoning = answer
        self.paint()
