"""Start, resume, pause and stop: of this window's run, and as far as it takes wishes of one that another program trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PySide6.QtCore import QObject
from PySide6.QtWidgets import QWidget

from app.dialogs import KEEP, SAVE, ask_stop
from app.frame.announcer import Announcer
from app.presenters.run_fold import RunFold
from app.presenters.run_header import RESUME, START, TRY
from app.services.trainer import history_of
from app.studio import Studio
from qlora_engine.control import STOP_DISCARD, STOP_SAVE
from qlora_engine.runs import commands


class Steering(QObject):
    """`began` is told when this window's run has just been begun; `tried` when the chosen one is to be tried."""

    def __init__(
        self,
        window: QWidget,
        studio: Studio,
        announcer: Announcer,
        began: Callable[[], object],
        tried: Callable[[], object],
    ) -> None:
        super().__init__(window)
        self._window, self._studio, self._announcer, self._began, self._tried = (
            window,
            studio,
            announcer,
            began,
            tried,
        )

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
        self._make_room()
        self._studio.trainer.start(job.config, job.folder)
        self._began()

    def resume(self, run_dir: Path, accept: Sequence[str] = ()) -> None:
        """Go on with a run that was stopped or broke off."""
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
            self._tell_elsewhere("stop", mode=STOP_SAVE if answer == SAVE else STOP_DISCARD)
        elif answer == SAVE:
            self._studio.trainer.stop_and_save()
        else:
            self._studio.trainer.stop_and_discard()

    def _tell_elsewhere(self, command: str, **more: str) -> None:
        """A run that another program trains takes wishes from its folder."""
        path = self._studio.shown.path
        if path is not None:
            tell = partial(commands.send, path, {"command": command, **more})
            self._studio.background.submit("command", tell, lambda _: None, self._announcer.tell_problem)

    def _make_room(self) -> None:
        """A run gets the memory and the processor to itself."""
        self._studio.workspace.watch.cancel()
        self._studio.tryout.make_room()
