"""Experiments: asked for in a dialog from a draft, lined up as planned runs, looked at in a comparison."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from PySide6.QtCore import QObject
from PySide6.QtWidgets import QWidget

from app.frame.queueing import Queueing
from app.presenters import experiment
from app.presenters.experiment import Wish
from app.studio import Studio
from app.widgets.experiment_dialog import ExperimentDialog
from qlora_engine.errors import EngineError
from qlora_engine.runs import queue, sweep
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.sweep import LookedAt, Planned, Preview, Sweep

MOST_COMPARED = 8
"""Runs in one picture; of a larger experiment one seed of each cell."""


class Experiments(QObject):
    """`compared` shows the comparison of what is chosen."""

    def __init__(
        self, window: QWidget, studio: Studio, waiting: Queueing, compared: Callable[[], object]
    ) -> None:
        super().__init__(window)
        self._window, self._studio, self._waiting, self._compared = window, studio, waiting, compared
        self.dialog: ExperimentDialog | None = None
        self._wanted: Sweep | None = None

    def open(self) -> None:
        """From the draft as it is now."""
        if not self._studio.shown.is_draft or self._studio.workspace.job.draft.issues:
            return
        if self.dialog is not None:
            self.dialog.deleteLater()
        config, knobs = self._studio.workspace.job.config, sweep.settings()
        own = {path: experiment.own_value(config, path) for path in knobs}
        self.dialog = ExperimentDialog(self._window, knobs, own)
        self.dialog.wished.connect(self._look)
        self.dialog.begin_asked.connect(self._begin)
        self.dialog.open()

    def compare(self, run_dir: Path) -> None:
        """The experiment of which a run is one."""
        for planned in sweep.among([run_dir])[-1:]:
            self._show(planned)

    def _look(self, wish: Wish) -> None:
        self._wanted = None
        job, entries = self._studio.workspace.job, self._studio.history.entries
        look = partial(experiment.preview, job.config, wish, entries, job.device, self._looked_at())
        self._studio.background.submit("experiment", look, self._take, self._refuse)

    def _looked_at(self) -> LookedAt:
        work = self._studio.workspace
        report, memory = work.data.report or {}, work.memory
        return LookedAt(
            work.job.config, memory.length.tokens, report.get("train_rows"), report.get("train_tokens"),
            memory.usable_gpu_bytes,
        )  # fmt: skip

    def _take(self, found: tuple[Sweep, list[Preview]]) -> None:
        self._wanted = found[0]
        if self.dialog is not None:
            self.dialog.show_state(experiment.state_of(*found, self._studio.room.own))

    def _refuse(self, error: EngineError) -> None:
        if self.dialog is not None:
            self.dialog.show_state(experiment.refused(error))

    def _begin(self) -> None:
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            self._studio.background.submit("experiment", lambda: _lined_up(wanted), self._begun, self._refuse)

    def _begun(self, planned: Planned) -> None:
        if self.dialog is not None:
            self.dialog.accept()
        self._studio.history.expect(*(path.resolve() for row in planned.runs for path in row))
        self._waiting.look()
        self._show(planned)

    def _show(self, planned: Planned) -> None:
        keys = experiment.runs_to_compare(planned, MOST_COMPARED)
        known = [key for key in keys if self._studio.history.find_in(key) is not None]
        if known:
            self._studio.shown.show(*known)
            self._compared()


def _lined_up(wanted: Sweep) -> Planned:
    """For a pool thread.

    Raises:
        EngineError: the runs or the queue cannot be written.
    """
    planned = sweep.plan(wanted)
    for path in (path for row in planned.runs for path in row):
        queue.add(RunFolder(path))
    return planned
