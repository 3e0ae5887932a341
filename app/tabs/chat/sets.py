"""Prompt sets: the chosen set asked of the chosen runs in an engine of its own, and what they keep of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PySide6.QtCore import QObject, QTimer

from app.controllers.blocked import blocked_text
from app.presenters.replayed import ReplayFold
from app.presenters.runs import usable_runs
from app.presenters.tried import settings_text
from app.presenters.words import capital
from app.studio import Studio
from app.tabs.chat.library import PromptLibrary
from app.tabs.chat.sets_panel import SetsPanel
from qlora_engine.errors import EngineError
from qlora_engine.evaluate import replay_plan
from qlora_engine.evaluate.replay_plan import Plan
from qlora_engine.events import TERMINAL, Event
from qlora_engine.jobs import ReplayJob

OWNER = "replay"
REPAINT_MS = 100


class SetsController(QObject):
    """`settings` gives the generation settings, which are the chat's."""

    def __init__(self, studio: Studio, panel: SetsPanel, settings: Callable[[], dict[str, Any]]) -> None:
        super().__init__(panel)
        self._studio, self._panel, self._settings = studio, panel, settings
        self.library = PromptLibrary(panel)
        self.fold = ReplayFold()
        self._chosen: frozenset[str] | None = None
        self._painted = -1
        self._timer = QTimer(self, interval=REPAINT_MS)
        self._timer.timeout.connect(self._repaint)
        studio.tryout.event_arrived.connect(self._take)
        panel.selection_changed.connect(self._selected)
        panel.again.toggled.connect(self.paint)
        panel.replay_asked.connect(self.replay)
        panel.stop_asked.connect(lambda: studio.tryout.stop(OWNER))
        self.library.changed.connect(self._look)
        self._look()

    def runs_changed(self) -> None:
        runs = usable_runs(self._studio.history.summaries)
        if self._chosen is None and runs:
            self._chosen = frozenset({str(runs[0].path)})
        if self.fold.state != "running":
            self._panel.set_runs(runs, self._chosen or frozenset())
            self._look()

    def choose(self, run_dirs: Sequence[str]) -> None:
        """Ask these runs."""
        if self.fold.state != "running":
            self._chosen = frozenset(run_dirs)
            self.runs_changed()

    def settings_changed(self) -> None:
        """Other settings, other answers."""
        if self.fold.state != "running":
            self._look()

    def replay(self) -> None:
        job = self._job()
        if job is None or blocked_text(self._studio):
            return
        self.fold.begin(again=job.again)
        self._timer.start()
        self._studio.tryout.start(OWNER, job)
        self.paint()

    def paint(self, *_: object) -> None:
        self._panel.show_state(
            self.fold,
            settings_text(self._settings()),
            has_runs=bool(usable_runs(self._studio.history.summaries)),
            blocked_text=blocked_text(self._studio),
        )

    def _selected(self) -> None:
        self._chosen = frozenset(self._panel.chosen_runs())
        self._look()

    def _job(self) -> ReplayJob | None:
        runs = self._panel.chosen_runs()
        if not runs or not self.library.prompts:
            return None
        return ReplayJob(
            runs,
            self.library.prompts,
            self._settings(),
            self._panel.with_base.isChecked(),
            self._panel.again.isChecked(),
        )

    def _look(self) -> None:
        """Show at once what the chosen runs keep; their files are read off the GUI thread."""
        job = self._job()
        self.fold.error_text = ""
        if job is None:
            self.fold.show_plan(None, self.library.prompts)
            self.paint()
            return
        look = ReplayJob(job.run_dirs, job.prompts, job.settings, job.with_base)
        prompts = self.library.prompts
        self._studio.background.submit(
            "replay plan",
            lambda: replay_plan.plan_of(look),
            lambda plan: self._planned(plan, prompts),
            self._refused,
        )

    def _planned(self, plan: Plan, prompts: Sequence[str]) -> None:
        if self.fold.state != "running":
            self.fold.show_plan(plan, prompts)
            self.paint()

    def _refused(self, error: EngineError) -> None:
        self.fold.show_plan(None, self.library.prompts)
        self.fold.error_text, self.fold.error_hint = capital(error.message), capital(error.hint)
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
