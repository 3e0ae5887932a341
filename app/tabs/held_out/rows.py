"""Held-out rows: scores a run's held-out rows in an engine of its own, and shows what runs keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTimer

from app.controllers.blocked import blocked_text
from app.presenters.predicted import PredictionsFold
from app.studio import Studio
from app.tabs.held_out.rows_panel import HeldOutPanel
from qlora_engine.evaluate import prediction_file
from qlora_engine.events import TERMINAL, Event
from qlora_engine.jobs import PredictionsJob
from qlora_engine.runs.record import RunFolder

OWNER = "held-out"
REPAINT_MS = 100


class HeldOutController(QObject):
    def __init__(self, studio: Studio, panel: HeldOutPanel) -> None:
        super().__init__(panel)
        self._studio, self._panel = studio, panel
        self.fold = PredictionsFold()
        self._run = self._title = ""
        self._painted = -1
        self._timer = QTimer(self, interval=REPAINT_MS)
        self._timer.timeout.connect(self._repaint)
        studio.tryout.event_arrived.connect(self._take)
        panel.score_asked.connect(self.score)
        panel.stop_asked.connect(lambda: studio.tryout.stop(OWNER))

    def follow(self) -> None:
        """Show the chosen run's rows; one that is being scored is not left."""
        if self.fold.state == "running":
            return
        summary, entry = self._studio.shown.summary, self._studio.shown.entry
        self._run = str(summary.path) if summary is not None and summary.has_adapter else ""
        self._title = entry.title if entry is not None else ""
        self._look()

    def score(self) -> None:
        if self._run and not blocked_text(self._studio):
            self.fold.begin(self._title)
            self._timer.start()
            self._studio.tryout.start(OWNER, PredictionsJob(self._run))
            self.paint()

    def paint(self) -> None:
        self._panel.show_state(self.fold, has_runs=bool(self._run), blocked_text=blocked_text(self._studio))

    def _look(self) -> None:
        """What the run keeps, read off the GUI thread."""
        run_dir = self._run
        if not run_dir:
            self._show(None)
            return
        self._studio.background.submit(
            "predictions", lambda: prediction_file.read(RunFolder(Path(run_dir))), self._show
        )

    def _show(self, found: Mapping[str, Any] | None) -> None:
        if self.fold.state != "running":
            self.fold.show(found)
            self.paint()

    def _take(self, owner: str, event: Event) -> None:
        if owner != OWNER:
            return
        self.fold.fold(event)
        if isinstance(event, TERMINAL):
            self._timer.stop()
            self.paint()

    def _repaint(self) -> None:
        if self._painted != self.fold.version:
            self._painted = self.fold.version
            self.paint()
