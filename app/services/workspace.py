"""What a run is prepared from, each part with one reason: the draft, its base model, its data, the memory it will need.

A part knows those before it, never those after: draft <- base model <- data <- memory. Here is what follows from what.
"""

from __future__ import annotations

from PySide6.QtCore import QObject

from app.services.background import Background
from app.services.base_model import BaseModel
from app.services.data_watch import DataWatch
from app.services.drafting import Drafting
from app.services.engine_thread import JobRunner
from app.services.memory_answers import MemoryAnswers
from app.services.settings import SettingsFile
from qlora_engine.config import TrainingConfig


class Workspace(QObject):
    """Lives in the GUI thread. `data` is what was found in the data that `watch` looks at."""

    def __init__(
        self, settings: SettingsFile, background: Background, data_job: JobRunner, desk_job: JobRunner,
        model_job: JobRunner,
    ) -> None:  # fmt: skip
        super().__init__()
        self.job = Drafting(settings)
        self.base = BaseModel(settings, background, self.job, model_job)
        self.watch = DataWatch(background, self.job, self.base, data_job, desk_job)
        self.data = self.watch.answer
        self.memory = MemoryAnswers(settings, self.job, self.base, self.data)
        self.job.replaced.connect(self._follow)
        self.base.facts_changed.connect(self._facts_changed)
        self.data.changed.connect(self._data_changed)

    def load(self) -> None:
        """Look around for the first time."""
        self.base.load()
        self.watch.look_at_place()

    def choose_preset(self, name: str) -> None:
        facts = self.base.facts
        self.job.put(self.job.draft.with_preset(name, facts.parameters if facts else None))

    def close(self) -> None:
        """Keep what was edited, and say and ask nothing more."""
        self.job.save_now()
        self.watch.close()
        for speaker in (self.job, self.base, self.base.fetch, self.memory):
            speaker.blockSignals(True)

    def _follow(self, old: TrainingConfig, new: TrainingConfig) -> None:
        is_other_model = (old.model.name, old.model.revision) != (new.model.name, new.model.revision)
        if is_other_model:
            self.base.forget()
        if is_other_model or (old.model.offline, old.model.resize_embeddings) != (
            new.model.offline, new.model.resize_embeddings
        ):  # fmt: skip
            self.base.look()
        if is_other_model or old.data != new.data:
            self.watch.begin_anew()
        self.memory.estimate()

    def _facts_changed(self) -> None:
        if self.base.facts is None:
            self.memory.forget()
            return
        self.memory.estimate()
        self.watch.look_soon()

    def _data_changed(self) -> None:
        if self.data.report is not None:
            self.memory.estimate()
            if not self.base.is_ready:
                self.base.load()  # looking at the data has converted the model
