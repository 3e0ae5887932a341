"""The training run of this window: one job in its QThread, folded into what the window shows of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QObject, QTimer, Signal

from app.presenters.picture_pace import ON_GPU, pace_of
from app.presenters.run_fold import RunFold
from app.services.engine_thread import JobRunner
from qlora_engine import config_io
from qlora_engine.config import TrainingConfig
from qlora_engine.control import STOP_DISCARD, STOP_SAVE
from qlora_engine.events import Event, RunStarted
from qlora_engine.jobs import Job, ResumeJob, TrainJob
from qlora_engine.runs.record import RunFolder


class Trainer(QObject):
    """Signals: `changed` at the run's pace while events arrive; `state_changed` when the run's state did;
    `ended(Event)` once the engine is gone."""

    changed = Signal()
    state_changed = Signal()
    ended = Signal(object)

    def __init__(self, runner: JobRunner) -> None:
        super().__init__()
        self._runner = runner
        self.run = RunFold()
        self.model = ""
        """What the run trains, before its folder tells."""
        self._painted = 0
        self._timer = QTimer(self, interval=ON_GPU.words_ms)
        self._timer.timeout.connect(self._repaint)
        runner.event_arrived.connect(self._take)
        runner.ended.connect(self._end)

    @property
    def is_running(self) -> bool:
        return self._runner.is_running

    def start(self, config: TrainingConfig, folder: Path | None = None) -> None:
        """Begin a new run; in the folder of a planned one, if it was planned."""
        if not self._runner.is_running:
            self.model = config.model.name
        run = RunFold()
        run.run_dir = str(folder) if folder is not None else None
        self._begin(TrainJob(config_io.to_dict(config), str(folder or "")), run)

    def resume(self, run_dir: Path, run: RunFold, accept: Sequence[str] = (), model: str = "") -> None:
        """Go on with a stopped or broken-off run; `run` has its curves so far. `accept` names differences from its
        checkpoint that are wanted."""
        if not self._runner.is_running:
            self.model = model
            run.run_id, run.run_dir = run_dir.name, str(run_dir)
            self._begin(ResumeJob(str(run_dir), tuple(accept)), run)

    def pause_or_continue(self) -> None:
        """Takes effect after the micro-batch that is being computed; until then it can be taken back."""
        is_pause = self.run.state == "running" and not self.run.status.is_pausing
        self._runner.send({"command": "pause" if is_pause else "continue"})
        if self.run.state == "running":
            self.run.asked_to_pause(is_pause)
            self.state_changed.emit()

    def stop_and_save(self) -> None:
        self._stop(STOP_SAVE)

    def stop_and_discard(self) -> None:
        self._stop(STOP_DISCARD)

    def leave(self) -> bool:
        """Let the run go on without this window; False if there is none that could."""
        return self._runner.leave()

    def ask(self, wish: str) -> None:
        """`save`, `evaluate` or `sample` at the next step."""
        self._runner.send({"command": wish})

    def _begin(self, job: Job, run: RunFold) -> None:
        if self._runner.is_running:
            return
        self.run = run
        self.run.begin()
        self._timer.start()
        self._runner.start(job)
        self.state_changed.emit()
        self.changed.emit()

    def _stop(self, mode: str) -> None:
        if self._runner.is_running:
            self.run.asked_to_stop()
            self._runner.stop(mode)
            self.state_changed.emit()

    def _take(self, event: Event) -> None:
        before = self.run.state
        self.run.fold(event)
        if isinstance(event, RunStarted):
            self.run.run_dir = os.path.realpath(event.run_dir)  # as the list of runs names it
        if self.run.state != before:
            self.state_changed.emit()

    def _repaint(self) -> None:
        self._timer.setInterval(pace_of(self.run).words_ms)
        if self._painted != self.run.version:
            self._painted = self.run.version
            self.changed.emit()

    def _end(self, event: Event) -> None:
        self._timer.stop()
        self._repaint()
        self.state_changed.emit()
        self.ended.emit(event)


def history_of(run_dir: Path) -> RunFold:
    """A run as its folder tells it; its memory trace is read by who draws it."""
    folded = RunFold()
    folder = RunFolder(run_dir)
    for event in folder.metrics():
        folded.fold(event)
    return folded
