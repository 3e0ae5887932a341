"""When the data are looked at: asked for by the person, or by itself once nothing has changed for a second."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QObject, QTimer

from app.services.background import Background
from app.services.base_model import BaseModel
from app.services.data_check import DataCheck
from app.services.data_place import DataPlace
from app.services.drafting import Drafting
from app.services.engine_thread import JobRunner

LOOK_DELAY_MS = 1200
"""How long nothing must change before the data is looked at without being asked."""


class DataWatch(QObject):
    """`answer` is what was found, `place` whether the files are there."""

    def __init__(self, background: Background, job: Drafting, base: BaseModel, runner: JobRunner) -> None:
        super().__init__()
        self._job, self._base = job, base
        self.answer = DataCheck(runner)
        self.place = DataPlace(background)
        self.may_look = False
        """True once data may be read without being asked."""
        self._may_begin = True
        self._timer = QTimer(self, singleShot=True, interval=LOOK_DELAY_MS)
        self._timer.timeout.connect(self._look)

    def check(self) -> None:
        """Look at the data now."""
        self._may_begin = True
        self.answer.ask(self._job.config)

    def cancel(self) -> None:
        """Stop looking, and do not begin again by itself before something changes."""
        self._may_begin = False
        self.answer.cancel()

    def begin_anew(self) -> None:
        """The data, or the model that reads them, are others now."""
        self._may_begin = True
        self.answer.forget()
        self.look_at_place()
        self.look_soon()

    def look_soon(self) -> None:
        self._timer.start()

    def look_at_place(self) -> None:
        """Files come and go."""
        self.place.look(self._job.config.data)

    def close(self) -> None:
        self._timer.stop()
        for speaker in (self.answer, self.place):
            speaker.blockSignals(True)

    def _look(self) -> None:
        """Unasked: local data for a local model cost seconds and no network."""
        path = self._job.config.data.path
        is_local = path == "starter" or Path(path).expanduser().exists()
        has_model = self._base.facts is not None and self._base.facts.path is not None
        is_wanted = self.may_look and self._may_begin and self.answer.is_open
        if is_wanted and is_local and has_model and not self._job.draft.issues:
            self.answer.ask(self._job.config)
