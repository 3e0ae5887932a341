"""Start, resume, pause and stop: of this window's run, and as far as it takes wishes of one that another program trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PySide6.QtCore import QObject
from PySide6.QtWidgets import QWidget

from app.dialogs import KEEP, QUEUE, SAVE, START_ANYWAY, ask_busy, ask_stop
from app.frame.announcer import Announcer
from app.presenters.run_fold import RunFold
from app.presenters.run_header import RESUME, START, TRY
from app.services.trainer import history_of
from app.studio import Studio
from qlora_engine.config import TrainingConfig
from qlora_engine.control import STOP_DISCARD, STOP_SAVE
from qlora_engine.errors import EngineError
from qlora_engine.runs import commands
from qlora_engine.runs.index import RunEntry
from qlora_engine.runs.outlook import Busy, busy_with
from qlora_engine.runs.record import RunFolder


class Steering(QObject):
    """`began` is told when this window's run has just been begun; `tried` when the chosen one is to be tried; `queued` takes
    a run, or None for the draft, that is to wait."""

    def __init__(
        self,
        window: QWidget,
        studio: Studio,
        announcer: Announcer,
        began: Callable[[], object],
        tried: Callable[[], object],
        queued: Callable[[Path | None], object],
    ) -> None:
        super().__init__(window)
        self._window, self._studio, self._announcer = window, studio, announcer
        self._began, self._tried, self._queued = began, tried, queued

    def act(self, action: str) -> None:
        """What the head's primary button says."""
        path = self._studio.shown.path
        if action == START:
            self.start()
        elif action == RESUME and path is not None:
            self.resume(path)
        elif action == TRY:
            self._tried()

    def start(self) -> None:
        """Start the draft that the run card describes."""
        job = self._studio.workspace.job
        job.save_now()
        self._unless_busy(lambda: job.config, None, self._start)

    def resume(self, run_dir: Path, accept: Sequence[str] = ()) -> None:
        """Go on with a run that was stopped or broke off."""
        self._unless_busy(lambda: RunFolder(run_dir).job(), run_dir, lambda: self._resume(run_dir, accept))

    def _start(self) -> None:
        job = self._studio.workspace.job
        self._make_room()
        self._studio.trainer.start(job.config, job.folder)
        self._began()

    def _resume(self, run_dir: Path, accept: Sequence[str]) -> None:
        self._announcer.clear()
        self._make_room()
        self._studio.background.submit(
            "history", lambda: history_of(run_dir), lambda run: self._go_on(run_dir, accept, run)
        )

    def _go_on(self, run_dir: Path, accept: Sequence[str], run: RunFold) -> None:
        """Its curves so far were read, which takes a second for a long run."""
        found = self._studio.history.find_in(str(run_dir))
        self._studio.trainer.resume(run_dir, run, accept, found.model if found is not None else "")
        self._began()

    def pause(self) -> None:
        """Or go on."""
        shown = self._studio.shown
        if shown.is_own:
            self._studio.trainer.pause_or_continue()
        else:
            self._tell_elsewhere("continue" if shown.fold.state == "paused" else "pause")

    def stop(self) -> None:
        """The three-way question; while it is open the run goes on."""
        shown = self._studio.shown
        is_own = shown.is_own
        answer = ask_stop(self._window, shown.fold)
        if answer == KEEP:
            return
        if not is_own:
            mode = STOP_SAVE if answer == SAVE else STOP_DISCARD
            self._tell_elsewhere("stop", self._studio.shown.kept.asked_to_stop, mode=mode)
        elif answer == SAVE:
            self._studio.trainer.stop_and_save()
        else:
            self._studio.trainer.stop_and_discard()

    def _tell_elsewhere(
        self, command: str, then: Callable[[Path], None] = lambda _: None, **more: str
    ) -> None:
        """A run that another program trains takes wishes from its folder; `then` once it lies there."""
        path = self._studio.shown.path
        if path is not None:
            tell = partial(commands.send, path, {"command": command, **more})
            self._studio.background.submit(
                "command", tell, lambda _: then(path), self._announcer.tell_problem
            )

    def _unless_busy(
        self, job: Callable[[], TrainingConfig], run_dir: Path | None, begin: Callable[[], object]
    ) -> None:
        """Beside a run of another program on the same device only when the person says so; it may wait instead. Which
        device that is may have to be asked of the driver, so not in the GUI thread."""
        entries = self._studio.history.entries
        if not any(entry.is_live for entry in entries):
            begin()
            return
        look = partial(_busy_with, job, entries)
        self._studio.background.submit("busy", look, partial(self._ask_if_busy, run_dir, begin))

    def _ask_if_busy(self, run_dir: Path | None, begin: Callable[[], object], busy: Busy | None) -> None:
        answer = START_ANYWAY if busy is None else ask_busy(self._window, busy)
        if answer == START_ANYWAY:
            begin()
        elif answer == QUEUE:
            self._queued(run_dir)

    def _make_room(self) -> None:
        """A run gets the memory and the processor to itself."""
        self._studio.workspace.watch.cancel()
        self._studio.tryout.make_room()


def _busy_with(job: Callable[[], TrainingConfig], entries: Sequence[RunEntry]) -> Busy | None:
    """None also where the job cannot be read, which the start itself will tell."""
    try:
        return busy_with(job(), entries)
    except EngineError:
        return None
