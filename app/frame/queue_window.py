"""Opens the queue beside the window and carries out what is asked of it there."""

from __future__ import annotations

import time
from pathlib import Path

from PySide6.QtCore import QObject
from PySide6.QtWidgets import QWidget

from app.frame.queueing import Queueing
from app.presenters import numerals
from app.presenters.waiting import waiting_state
from app.presenters.words import capital
from app.studio import Studio
from app.widgets.queue_dialog import QueueDialog
from qlora_engine.errors import EngineError
from qlora_engine.runs import outlook

STEPS = {"first": 0, "earlier": -1, "later": 1}


class QueueWindow(QObject):
    """One dialog however often it is asked for; it follows the queue while it is open."""

    def __init__(self, window: QWidget, studio: Studio, waiting: Queueing) -> None:
        super().__init__(window)
        self._window, self._studio, self._waiting = window, studio, waiting
        self.dialog: QueueDialog | None = None
        studio.outlook.changed.connect(self.paint)
        studio.history.changed.connect(self.paint)

    def open(self) -> None:
        if self.dialog is None:
            self.dialog = QueueDialog(self._window, numerals.time_of_day(outlook.TONIGHT))
            self.dialog.move_asked.connect(self._move)
            self.dialog.pause_asked.connect(self._waiting.pause)
            self.dialog.begin_asked.connect(self._begin)
        self._studio.outlook.look()
        self.paint()
        self.dialog.show()
        self.dialog.raise_()
        self.dialog.activateWindow()

    def paint(self) -> None:
        if self.dialog is not None:
            titles = {str(entry.path): entry.title for entry in self._studio.history.entries}
            self.dialog.show_state(waiting_state(self._studio.outlook.seen, titles, time.time()))

    def _move(self, run_dir: str, how: str) -> None:
        if how in STEPS:
            self._waiting.move(Path(run_dir), STEPS[how])
        else:
            self._waiting.remove(Path(run_dir))

    def _begin(self, text: str) -> None:
        """At a time of the day, or at once."""
        assert self.dialog is not None
        try:
            self._waiting.begin_at(outlook.next_time(numerals.plain_time(text)) if text else None)
        except EngineError as error:
            self.dialog.notice.say(f"{capital(error.message)}.", capital(error.hint), "bad")
            return
        self.dialog.notice.say("")
