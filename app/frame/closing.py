"""Whether the window may go while a run is training: asked about, saved first, and never a window that answers nothing."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QObject
from PySide6.QtWidgets import QWidget

from app.dialogs import CLOSE_ANYWAY, GO_ON, SAVE, ask_close
from app.services.trainer import Trainer
from app.widgets.banner import Banner
from qlora_engine.events import Event, RunFailed


class Closing(QObject):
    """`close` tries again; it is called once the run is saved, or when the person will not wait for that."""

    def __init__(
        self, window: QWidget, trainer: Trainer, banner: Banner, close: Callable[[], object]
    ) -> None:
        super().__init__(window)
        self._window, self._trainer, self._banner, self._close = window, trainer, banner, close
        self._is_forced = False
        self.is_waiting = False
        """The run is being saved, and the window goes when that is done."""

    def may_close(self) -> bool:
        """Asks if it must. A run that ends while the question is open needs no saving any more."""
        if self._is_forced or not self._trainer.is_running:
            return True
        if self.is_waiting:
            return False  # the banner offers not to wait
        answer = ask_close(self._window, self._trainer.run)
        if answer == CLOSE_ANYWAY or (answer == SAVE and not self._trainer.is_running):
            return True
        if answer == GO_ON:
            return self._leave()
        if answer == SAVE:
            self._save_first()
        return False

    def ask_no_more(self) -> None:
        """Whatever runs, the window goes when it is closed."""
        self._is_forced = True

    def closes_after(self, event: Event) -> bool:
        """The run has ended: True if the window goes now. A run that could not be saved keeps it open to say so."""
        was_waiting, self.is_waiting = self.is_waiting, False
        return was_waiting and not isinstance(event, RunFailed)

    def _leave(self) -> bool:
        """The run goes on by itself; the window goes once its engine has heard of that."""
        self.is_waiting = self._trainer.leave()
        told = (
            "The run goes on by itself; the window closes."
            if self.is_waiting
            else "This run cannot go on by itself."
        )
        self._banner.say(told, "", "accent", ("Close at once", self._close_now), ("Stay open", self._stay))
        return False

    def _save_first(self) -> None:
        self.is_waiting = True
        self._banner.say(
            "The run is being saved; then the window closes.", "Closing at once loses the work since the last checkpoint.",
            "accent", ("Close at once", self._close_now), ("Stay open", self._stay),
        )  # fmt: skip
        self._trainer.stop_and_save()

    def _close_now(self) -> None:
        self.ask_no_more()
        self._close()

    def _stay(self) -> None:
        """The run stops all the same."""
        self.is_waiting = False
        self._banner.say("")
