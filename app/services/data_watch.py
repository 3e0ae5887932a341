"""When the data are looked at: asked for by the person, or by itself once nothing has changed for a second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from app.services.background import Background
from app.services.base_model import BaseModel
from app.services.data_check import DataCheck
from app.services.data_desk import DataDesk
from app.services.data_place import DataPlace
from app.services.drafting import Drafting
from app.services.engine_thread import JobRunner
from qlora_engine.data.grades import first_blocking
from qlora_engine.errors import EngineError

LOOK_DELAY_MS = 1200
"""How long nothing must change before the data is looked at without being asked."""


class DataWatch(QObject):
    """`answer` is what was found, `place` whether the files are there, `desk` answers about single rows, `findings` are the
    doctor's: of the whole check, else of reading alone. Signals: `changed` when what keeps the run from starting may have."""

    changed = Signal()

    def __init__(
        self, background: Background, job: Drafting, base: BaseModel, runner: JobRunner, desk: JobRunner
    ) -> None:
        super().__init__()
        self._job, self._base = job, base
        self.answer = DataCheck(runner)
        self.desk = DataDesk(desk, job)
        self._read: tuple[Mapping[str, Any], ...] = ()
        self.place = DataPlace(background)
        self.may_look = False
        """True once data may be read without being asked."""
        self._may_begin = True
        self._timer = QTimer(self, singleShot=True, interval=LOOK_DELAY_MS)
        self._timer.timeout.connect(self._look)

    @property
    def findings(self) -> tuple[Mapping[str, Any], ...]:
        report = self.answer.report
        return self._read if report is None else tuple(report.get("findings", ()))

    @property
    def problem(self) -> EngineError | None:
        """Why a run with these data would not start: what `qlora check` and the start say too."""
        return self.answer.error or self.place.problem or first_blocking(self.findings)

    def check(self) -> None:
        """Look at the data now."""
        self._may_begin = True
        self.answer.ask(self._job.config)

    def cancel(self) -> None:
        """Stop looking, and do not begin again by itself before something changes."""
        self._may_begin = False
        self.answer.cancel()
        self.desk.rest()

    def begin_anew(self) -> None:
        """The data, or the model that reads them, are others now."""
        self._may_begin = True
        self._read = ()
        self.desk.forget()
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
        for speaker in (self, self.answer, self.desk, self.place):
            speaker.blockSignals(True)

    def _look(self) -> None:
        """Unasked: local data cost seconds and no network; without their model they are only read."""
        path = self._job.config.data.path
        is_local = path == "starter" or Path(path).expanduser().exists()
        has_model = self._base.facts is not None and self._base.facts.path is not None
        is_wanted = self.may_look and self._may_begin and self.answer.is_open
        if not (is_wanted and is_local) or self._job.draft.issues:
            return
        if has_model:
            self.answer.ask(self._job.config)
        else:
            self.desk.ask("check", {}, self._take_reading, self._take_refusal)

    def _take_reading(self, answer: Mapping[str, Any]) -> None:
        self._read = tuple(answer["findings"])
        self.changed.emit()

    def _take_refusal(self, error: EngineError) -> None:
        finding = {"grade": "blocks", "code": error.code, "text": error.message, "repair_text": error.hint}
        self._take_reading({"findings": [finding]})
