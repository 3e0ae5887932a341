"""The banner over every tab: how a run ended, what can be done with it now, and the run that can go on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from PySide6.QtCore import QObject
from PySide6.QtWidgets import QApplication

from app.presenters.run_numbers import numbers_of
from app.presenters.runs import interrupted_run, loss_text
from app.presenters.words import count_text, of_text
from app.studio import Studio
from app.widgets.banner import Banner
from qlora_engine import events as ev
from qlora_engine.errors import EngineError

Action = tuple[str, Callable[[], object]]


class Places(Protocol):
    """Where a run can be taken to."""

    def open_run(self, run_dir: str | None, tab: str, detail: str = "") -> None: ...

    def resume(self, run_dir: Path) -> None: ...


class Announcer(QObject):
    """Says what happened to runs, and offers once, after the first look at the runs, to go on with one."""

    def __init__(self, studio: Studio, banner: Banner, places: Places) -> None:
        super().__init__(banner)
        self._studio, self._banner, self._places = studio, banner, places
        self._has_offered = False
        studio.history.changed.connect(self._offer_resume)
        studio.trainer.state_changed.connect(self._remember_run)

    def clear(self) -> None:
        self._banner.say("")

    def tell_end(self, event: ev.Event) -> None:
        """Of the run that has just ended; one that failed is offered again at the next start."""
        window = self._banner.window()
        if self._studio.settings.value.notifies and not window.isActiveWindow():
            QApplication.alert(window)
        if not isinstance(event, ev.RunFailed):
            self._studio.settings.change(unfinished=None)
        match event:
            case ev.RunFinished():
                self._tell_finished()
            case ev.RunFailed():
                self._say(f"{event.message}.", event.hint, "bad")
            case ev.RunStopped(is_resumable=True):
                text = f"Stopped at step {count_text(event.result.get('step'))}, and saved."
                self._say(text, "Resume it at any time: choose it in the list of runs.", "accent")
            case _:
                self._say("Stopped. Nothing was saved.", "", "accent")

    def tell_problem(self, error: EngineError) -> None:
        self._say(f"{error.message}.", error.hint, "bad")

    def _tell_finished(self) -> None:
        run = self._studio.trainer.run
        numbers = numbers_of(run)
        self._say(
            f"Finished. Held-out loss {numbers.held_out_text}: {numbers.held_out_note}.", "", "good",
            ("Try it", partial(self._leave, run.run_dir, "chat", "load")),
            ("Export", partial(self._leave, run.run_dir, "export")),
        )  # fmt: skip

    def _offer_resume(self) -> None:
        if self._has_offered or not self._studio.history.is_read:
            return
        self._has_offered = True
        left = self._studio.settings.value.unfinished
        entry = self._studio.history.entry_of(left) if left else None
        if entry is not None and entry.is_live and not self._studio.trainer.is_running:
            self._places.open_run(left, "live")  # it went on without a window
            return
        found = interrupted_run(self._studio.history.summaries, self._studio.settings.value.unfinished)
        if found is not None and not self._studio.trainer.is_running:
            step = f" at step {of_text(found.last_step, found.total_steps)}" if found.last_step else ""
            self._say(
                f"The run {found.run_id} was interrupted{step}.",
                f"Its last checkpoint is whole. Held-out loss {loss_text(found)}.",
                "warning", ("Resume", partial(self._places.resume, found.path)),
            )  # fmt: skip

    def _remember_run(self) -> None:
        """Until it has ended, a run belongs to the next start, whatever becomes of this window."""
        run = self._studio.trainer.run
        if run.is_live and run.run_dir and run.run_dir != self._studio.settings.value.unfinished:
            self._studio.settings.change(unfinished=run.run_dir)

    def _say(self, text: str, hint: str, tone: str, *actions: Action) -> None:
        self._banner.say(text, hint, tone, *actions, ("Dismiss", self.clear))

    def _leave(self, run_dir: str | None, tab: str, detail: str = "") -> None:
        self.clear()
        self._places.open_run(run_dir, tab, detail)
