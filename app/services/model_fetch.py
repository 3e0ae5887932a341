"""Gets the chosen model now, instead of at the start of the run: downloads it, or converts it once."""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal

from app.services.engine_thread import JobRunner, NewestJob, as_error
from qlora_engine.config import ModelSettings
from qlora_engine.errors import EngineError
from qlora_engine.events import TERMINAL, Event, PhaseChanged, Progressed
from qlora_engine.jobs import PrepareModelJob


class ModelFetch(QObject):
    """`text` is empty while nothing is fetched. Signals: `changed`; `done` when an engine has ended, however it did."""

    changed = Signal()
    done = Signal()

    def __init__(self, runner: JobRunner) -> None:
        super().__init__()
        self._job = NewestJob(runner)
        self._job.event_arrived.connect(self._take)
        self._job.ended.connect(self.done)
        self.text = ""
        self.share: float | None = None
        self.error: EngineError | None = None

    def begin(self, model: ModelSettings) -> None:
        self.text, self.share, self.error = "Looking for the model", None, None
        self._job.ask(PrepareModelJob(model.name, model.revision, model.offline))
        self.changed.emit()

    def forget(self) -> None:
        """Stop, and say nothing of it any more; what was downloaded is kept."""
        self.text, self.share, self.error = "", None, None
        self._job.drop()
        self.changed.emit()

    def _take(self, event: Event) -> None:
        if isinstance(event, PhaseChanged):
            self.text = event.text
        elif isinstance(event, Progressed):
            self.share = event.done / event.total if event.total else None
        elif isinstance(event, TERMINAL):
            self.text, self.error = "", as_error(event)
        self.changed.emit()
