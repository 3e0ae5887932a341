"""Held-out rows of the chosen runs: what they keep, and one after another what was not scored yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QObject

from app.controllers.blocked import blocked_text
from app.presenters.predicted import PredictionsFold
from app.presenters.rows_across import rows_state
from app.studio import Studio
from app.tabs.compare.rows_panel import RowsPanel
from qlora_engine.evaluate.rows_across import RowsAcross, across
from qlora_engine.events import TERMINAL, Event, RunFinished
from qlora_engine.jobs import PredictionsJob
from qlora_engine.runs.record import RunFolder

OWNER = "held-out of several"
SAME = 10
"""Rows that every run answers, whatever it predicts best and worst."""


class RowsController(QObject):
    def __init__(self, studio: Studio, panel: RowsPanel) -> None:
        super().__init__(panel)
        self._studio, self._panel = studio, panel
        self._paths: tuple[Path, ...] = ()
        self._titles: tuple[str, ...] = ()
        self._left: list[Path] = []
        self._found: RowsAcross | None = None
        self.fold = PredictionsFold()
        studio.tryout.event_arrived.connect(self._take)
        studio.trainer.state_changed.connect(self._paint_work)
        panel.score_asked.connect(self.score)
        panel.stop_asked.connect(self._stop)
        self._paint_work()

    def show(self, paths: Sequence[Path], titles: Sequence[str]) -> None:
        """Those of other runs; read off the GUI thread."""
        self._paths, self._titles = tuple(paths), tuple(titles)
        folders = [RunFolder(path) for path in paths]
        self._studio.background.submit("rows", lambda: across(folders), self._show)

    def score(self) -> None:
        """Every run that was not scored yet, one after another: one model at most is in memory."""
        if self._found is not None and not self._left and not blocked_text(self._studio):
            self._left = [self._paths[place] for place in self._found.unscored]
            self._next()

    def _next(self) -> None:
        if self._left:
            self.fold.begin(self._left[0].name)
            self._studio.tryout.start(OWNER, PredictionsJob(str(self._left[0]), same=SAME))
        self._paint_work()

    def _stop(self) -> None:
        self._left = []
        self._studio.tryout.stop(OWNER)

    def _show(self, found: RowsAcross) -> None:
        self._found = found
        self._panel.show_rows(rows_state(found, self._titles))

    def _take(self, owner: str, event: Event) -> None:
        if owner != OWNER:
            return
        self.fold.fold(event)
        if isinstance(event, TERMINAL):
            self._left = self._left[1:] if isinstance(event, RunFinished) else []
            self._panel.notice.say(self.fold.error_text, self.fold.error_hint, "bad")
            self.show(self._paths, self._titles)
            self._next()
        self._paint_work()

    def _paint_work(self) -> None:
        self._panel.show_work(self.fold.working_text, self.fold.share, blocked_text(self._studio))
