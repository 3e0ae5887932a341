"""Timeline: what a run's folder tells of its fixed prompts, also while the run is training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QObject

from app.presenters.timeline import timeline_state
from app.studio import Studio
from app.tabs.held_out.timeline_panel import TimelinePanel
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.timeline import Timeline, timelines


class TimelineController(QObject):
    def __init__(self, studio: Studio, panel: TimelinePanel) -> None:
        super().__init__(panel)
        self._studio, self._panel = studio, panel
        self._run = self._prompt = ""
        self._told = 0
        self._found: tuple[Timeline, ...] = ()
        panel.prompt_chosen.connect(self._choose_prompt)
        studio.shown.told.connect(self._told_more)

    def follow(self) -> None:
        """Show the chosen run."""
        path = self._studio.shown.path
        self._run = str(path) if path is not None else ""
        self._look()

    def paint(self) -> None:
        self._panel.show_state(timeline_state(self._found, self._prompt), has_runs=bool(self._run))

    def _look(self) -> None:
        run_dir = self._run
        if not run_dir:
            self._show(())
            return
        self._studio.background.submit(
            "timeline", lambda: timelines(RunFolder(Path(run_dir)).metrics()), self._show
        )

    def _show(self, found: Sequence[Timeline]) -> None:
        self._found = tuple(found)
        self.paint()

    def _choose_prompt(self, prompt: str) -> None:
        self._prompt = prompt
        self.paint()

    def _told_more(self) -> None:
        """The run answered again, or was evaluated: its folder has more to tell."""
        run = self._studio.shown.fold
        told = len(run.samples) + len(run.series["held_out"])
        if told != self._told:
            self._told = told
            self.follow()
