"""Try it, timeline: what a run's folder tells of its fixed prompts, also while the run is training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QObject

from app.presenters.runs import run_title
from app.presenters.timeline import timeline_state
from app.screens.try_timeline import TimelinePanel
from app.studio import Studio
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.timeline import Timeline, timelines


class TimelineController(QObject):
    def __init__(self, studio: Studio, panel: TimelinePanel) -> None:
        super().__init__(panel)
        self._studio, self._panel = studio, panel
        self._run = self._prompt = ""
        self._told = 0
        self._live: str | None = None
        self._found: tuple[Timeline, ...] = ()
        panel.run_chosen.connect(self.choose)
        panel.prompt_chosen.connect(self._choose_prompt)
        studio.trainer.changed.connect(self._training_went_on)

    def choose(self, run_dir: str) -> None:
        if run_dir:
            self._run = run_dir
            self.runs_changed()

    def paint(self) -> None:
        self._panel.show_state(timeline_state(self._found, self._prompt), has_runs=bool(self._run))

    def runs_changed(self) -> None:
        runs = self._runs()
        known = [value for value, _ in runs]
        if self._run not in known:
            self._run = known[0] if known else ""
        self._panel.set_runs(runs, self._run)
        self._look()

    def _runs(self) -> list[tuple[str, str]]:
        """Every run, the one that is training first: the history knows it only once it was read again."""
        found = {str(s.path): run_title(s) for s in self._studio.history.summaries}
        live = self._studio.trainer.run
        if live.run_dir and live.run_dir not in found:
            found = {live.run_dir: f"{live.run_id} \u2013 training", **found}
        return list(found.items())

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

    def _training_went_on(self) -> None:
        """The run of this window answered again, or was evaluated: its folder has more to tell. A new one is shown."""
        run = self._studio.trainer.run
        if run.run_dir != self._live:
            self._live = run.run_dir
            self._run = run.run_dir or self._run
        told = len(run.samples) + len(run.series["held_out"])
        if told != self._told:
            self._told = told
            self.runs_changed()
