"""Measures what 4 bits cost on the chosen model when asked to, and finds again what was measured before."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from app.presenters.quality import QualityStatus, progress_text
from app.services.background import Background
from app.services.engine_thread import JobRunner, NewestJob, as_error
from app.services.workspace import Workspace
from qlora_engine import config_io
from qlora_engine.config import TrainingConfig
from qlora_engine.events import TERMINAL, Event, PhaseChanged, Progressed, RunFinished
from qlora_engine.jobs import QualityJob
from qlora_engine.quantization import store
from qlora_engine.quantization.report import QualityReport, report_from
from qlora_engine.quantization.variants import Options

LOOK_DELAY_MS = 400
STOPPED = "Stopped; nothing was kept."
MADE_ROOM = "Stopped, because a run began to train."


class QualityCheck(QObject):
    """Lives in the GUI thread. `report` belongs to the model and data chosen now; None while there is none.

    Signals: `changed`.
    """

    changed = Signal()

    def __init__(
        self, workspace: Workspace, background: Background, runner: JobRunner, training: JobRunner
    ) -> None:
        super().__init__()
        self._workspace, self._background, self._training = workspace, background, training
        self._job = NewestJob(runner)
        self._job.event_arrived.connect(self._take)
        self._key = question_of(workspace.job.config)
        self._text, self._note = "", ""
        self._share: float | None = None
        self._error: Any = None
        self.report: QualityReport | None = None
        self._timer = QTimer(self, singleShot=True, interval=LOOK_DELAY_MS)
        self._timer.timeout.connect(self._look)
        workspace.job.changed.connect(self._follow)
        workspace.base.facts_changed.connect(self._timer.start)
        training.started.connect(self._make_room)
        training.ended.connect(self.changed)

    @property
    def status(self) -> QualityStatus:
        return QualityStatus(self._text, self._share, self._error, self._note, self._training.is_running)

    def begin(self) -> None:
        """Measure; what is kept of this model and data is measured anew. Does nothing while a run trains."""
        if self._training.is_running or self._text:
            return
        self._begin_with("Starting the engine")
        options = Options(is_again=self.report is not None)
        self._job.ask(QualityJob(config_io.to_dict(self._workspace.job.config), options.to_json()))
        self.changed.emit()

    def stop(self, note: str = STOPPED) -> None:
        """Measure no further; what was shown stays."""
        if self._text:
            self._job.drop()
            self._end_with(note)

    def _begin_with(self, text: str) -> None:
        self._text, self._share, self._error, self._note = text, None, None, ""

    def _end_with(self, note: str = "") -> None:
        self._text, self._share, self._note = "", None, note
        self.changed.emit()

    def _make_room(self) -> None:
        self.stop(MADE_ROOM)
        self.changed.emit()

    def _follow(self) -> None:
        """Another model or other data are another question: nothing of the old one is shown or measured."""
        key = question_of(self._workspace.job.config)
        if key != self._key:
            self._key = key
            self.stop("")
            self.report, self._error, self._note = None, None, ""
            self._timer.start()
            self.changed.emit()

    def _look(self) -> None:
        if self._text or self.report is not None:
            return
        config = self._workspace.job.config
        key = self._key
        self._background.submit(
            "quality", lambda: store.kept(config, Options()), lambda found: self._found(key, found), lambda _: None
        )  # fmt: skip

    def _found(self, key: str, report: QualityReport | None) -> None:
        if key == self._key and report is not None and not self._text:
            self.report = report
            self.changed.emit()

    def _take(self, event: Event) -> None:
        if isinstance(event, PhaseChanged):
            self._text, self._share = event.text, None
        elif isinstance(event, Progressed):
            self._text = progress_text(event.phase, event.done, event.total, event.unit)
            self._share = event.done / event.total if event.total else None
        elif isinstance(event, TERMINAL):
            self._error = as_error(event)
            if isinstance(event, RunFinished):
                self.report = report_from(event.result)
            self._end_with()
            return
        self.changed.emit()


def question_of(config: TrainingConfig) -> str:
    """Two jobs with one key have one answer."""
    return repr((config.model, config.data, config.training.seed, config.quantization.compute_dtype))
