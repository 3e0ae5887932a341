"""Try it, prompt sets: kept, written and imported; asked of the chosen runs in an engine of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTimer
from PySide6.QtWidgets import QFileDialog

from app.controllers.blocked import blocked_text
from app.dialogs import ask_delete
from app.presenters.replayed import ReplayFold
from app.presenters.runs import usable_runs
from app.presenters.tried import settings_text
from app.screens.try_sets import SetsPanel
from app.studio import Studio
from app.widgets.prompt_dialog import PromptDialog
from qlora_engine.errors import EngineError
from qlora_engine.evaluate import prompt_sets, replay_plan
from qlora_engine.evaluate.prompt_sets import PromptSet
from qlora_engine.evaluate.replay_plan import Plan
from qlora_engine.events import TERMINAL, Event
from qlora_engine.jobs import ReplayJob

OWNER = "replay"
REPAINT_MS = 100
PROMPT_FILES = "Prompts (*.txt *.jsonl *.json)"


class SetsController(QObject):
    """`settings` gives the generation settings, which are the chat's."""

    def __init__(self, studio: Studio, panel: SetsPanel, settings: Callable[[], dict[str, Any]]) -> None:
        super().__init__(panel)
        self._studio, self._panel, self._settings = studio, panel, settings
        self.fold = ReplayFold()
        self._sets: list[PromptSet] = []
        self._set = prompt_sets.STARTER
        self._chosen: frozenset[str] | None = None
        self._painted = -1
        self._timer = QTimer(self, interval=REPAINT_MS)
        self._timer.timeout.connect(self._repaint)
        studio.tryout.event_arrived.connect(self._take)
        panel.set_chosen.connect(self._choose_set)
        panel.new_asked.connect(lambda: self.write_new(()))
        panel.edit_asked.connect(self._edit)
        panel.import_asked.connect(self._import)
        panel.delete_asked.connect(self._delete)
        panel.selection_changed.connect(self._selected)
        panel.again.toggled.connect(self.paint)
        panel.replay_asked.connect(self.replay)
        panel.stop_asked.connect(lambda: studio.tryout.stop(OWNER))
        self._read_sets()

    @property
    def prompts(self) -> tuple[str, ...]:
        return next((found.prompts for found in self._sets if found.name == self._set), ())

    def runs_changed(self) -> None:
        runs = usable_runs(self._studio.history.summaries)
        if self._chosen is None and runs:
            self._chosen = frozenset({str(runs[0].path)})
        if self.fold.state != "running":
            self._panel.set_runs(runs, self._chosen or frozenset())
            self._look()

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

    # ------------------------------------------------------------ sets

    def write_new(self, prompts: Sequence[str]) -> bool:
        """Ask for a name and let the prompts be written; True when a set was saved."""
        return self._write("", prompts)

    def _edit(self) -> None:
        found = next((s for s in self._sets if s.name == self._set), None)
        if found is not None:
            self._write(f"{found.name} (copy)" if found.is_builtin else found.name, found.prompts)

    def _write(self, name: str, prompts: Sequence[str]) -> bool:
        dialog = PromptDialog(self._panel, name, prompts, prompt_sets.save)
        if not dialog.exec():
            return False
        self._set = dialog.saved_name
        if name and name != self._set and any(s.name == name and not s.is_builtin for s in self._sets):
            prompt_sets.delete(name)  # it was renamed
        self._read_sets()
        return True

    def _import(self) -> None:
        file, _ = QFileDialog.getOpenFileName(self._panel, "Import prompts", "", PROMPT_FILES)
        if file:
            self.import_file(Path(file))

    def import_file(self, file: Path) -> None:
        """Prompts of a file, named after it, to be looked at before they are saved."""
        try:
            prompts = prompt_sets.read_prompts(file)
        except EngineError as error:
            self._panel.notice.say(f"{error.message}.", error.hint, "bad")
            return
        self._write(file.stem, prompts)

    def _delete(self) -> None:
        details = "Answers that runs keep stay with them."
        if ask_delete(self._panel, "Delete this prompt set?", f"Delete {self._set}?", details, "Delete set"):
            prompt_sets.delete(self._set)
            self._set = prompt_sets.STARTER
            self._read_sets()

    def _read_sets(self) -> None:
        self._sets = prompt_sets.all_sets()
        if self._set not in {found.name for found in self._sets}:
            self._set = prompt_sets.STARTER
        self._panel.set_sets(self._sets, self._set)
        self._look()

    def _choose_set(self, name: str) -> None:
        self._set = name
        self._panel.set_sets(self._sets, name)
        self._look()

    # ------------------------------------------------------------ what is asked

    def _selected(self) -> None:
        self._chosen = frozenset(self._panel.chosen_runs())
        self._look()

    def _job(self) -> ReplayJob | None:
        runs = self._panel.chosen_runs()
        if not runs or not self.prompts:
            return None
        return ReplayJob(
            runs,
            self.prompts,
            self._settings(),
            self._panel.with_base.isChecked(),
            self._panel.again.isChecked(),
        )

    def _look(self) -> None:
        """Show at once what the chosen runs keep; their files are read off the GUI thread."""
        job = self._job()
        self.fold.error_text = ""
        if job is None:
            self.fold.show_plan(None, self.prompts)
            self.paint()
            return
        look = ReplayJob(job.run_dirs, job.prompts, job.settings, job.with_base)
        prompts = self.prompts
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
        self.fold.show_plan(None, self.prompts)
        self.fold.error_text, self.fold.error_hint = error.message, error.hint
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
