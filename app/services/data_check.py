"""What the model would be trained on, as the engine reads it: asked again whenever model or data have changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import QObject, Signal

from app.presenters.words import capital, of_text
from app.services.engine_thread import JobRunner, NewestJob, as_error
from qlora_engine import config_io
from qlora_engine.config import TrainingConfig
from qlora_engine.errors import EngineError
from qlora_engine.events import TERMINAL, Event, PhaseChanged, Progressed, RunFinished
from qlora_engine.jobs import DataReportJob


class DataCheck(QObject):
    """`report` answers the newest question, `error` says why there is none, `progress` is empty while nothing
    is asked. Signals: `changed`."""

    changed = Signal()

    def __init__(self, runner: JobRunner) -> None:
        super().__init__()
        self._job = NewestJob(runner)
        self._job.event_arrived.connect(self._take)
        self.report: Mapping[str, Any] | None = None
        self.error: EngineError | None = None
        self.progress = ""

    @property
    def is_open(self) -> bool:
        """True while the question has neither been asked nor answered."""
        return self.report is None and self.error is None and not self._job.is_wanted

    def ask(self, config: TrainingConfig) -> None:
        """Read and tokenize the data as a run of `config` would."""
        self.error, self.progress = None, "Starting the engine"
        self._job.ask(DataReportJob(config_io.to_dict(config), show_rows=0))
        self.changed.emit()

    def cancel(self) -> None:
        """Do not answer; what was known stays known."""
        self.progress = ""
        self._job.drop()
        self.changed.emit()

    def forget(self) -> None:
        """The data are others now."""
        self.report, self.error = None, None
        self.cancel()

    def _take(self, event: Event) -> None:
        if isinstance(event, PhaseChanged):
            self.progress = event.text
        elif isinstance(event, Progressed):
            self.progress = f"{capital(event.phase)}: {of_text(event.done, event.total or None)} {event.unit}"
        elif isinstance(event, TERMINAL):
            self.progress, self.error = "", as_error(event)
            if isinstance(event, RunFinished):
                self.report = event.result["report"]
        self.changed.emit()
