"""The base model of the draft: what can be chosen, the facts of what is, and getting it onto this disk."""

from __future__ import annotations

from PySide6.QtCore import QObject, Signal

from app.services.background import Background
from app.services.drafting import Drafting
from app.services.engine_thread import JobRunner
from app.services.model_fetch import ModelFetch
from app.services.settings import SettingsFile
from qlora_engine.errors import EngineError
from qlora_engine.models import catalog
from qlora_engine.models.catalog import CatalogEntry
from qlora_engine.models.spec import ModelFacts


class BaseModel(QObject):
    """`facts` and `models` are the newest, None while unknown. Signals: `models_changed`, `facts_changed`."""

    models_changed = Signal()
    facts_changed = Signal()

    def __init__(
        self, settings: SettingsFile, background: Background, job: Drafting, runner: JobRunner
    ) -> None:
        super().__init__()
        self._settings, self._background, self._job = settings, background, job
        self.models: tuple[CatalogEntry, ...] | None = None
        self.facts: ModelFacts | None = None
        self.facts_error: EngineError | None = None
        self.fetch = ModelFetch(runner)
        self.fetch.done.connect(self.load)

    def load(self) -> None:
        """Look around, for the first time or once something was fetched."""
        self.refresh()
        self.look()

    def refresh(self) -> None:
        folders = self._settings.value.folders
        self._background.submit("models", lambda: tuple(catalog.list_models(folders)), self._take_models)

    def add_folder(self, folder: str) -> None:
        folders = self._settings.value.folders
        if folder not in folders:
            self._settings.change(folders=(*folders, folder))
        self.refresh()

    def look(self) -> None:
        """Read the facts of the chosen model."""
        model = self._job.config.model
        self._background.submit(
            "facts",
            lambda: catalog.facts_for(model),
            self._take_facts,
            self._take_facts_error,
        )

    def forget(self) -> None:
        """Nothing of another model is shown while the chosen one is being looked at."""
        self.facts = self.facts_error = None
        self.fetch.forget()
        self.facts_changed.emit()

    def fetch_now(self) -> None:
        """Download or convert the chosen model now instead of at the start of the run."""
        self.fetch.begin(self._job.config.model)

    @property
    def is_ready(self) -> bool:
        """True unless the chosen model is known to need a download or a conversion."""
        chosen = self._job.config.model.name
        return self.models is None or any(entry.name == chosen and entry.is_ready for entry in self.models)

    def _take_models(self, found: tuple[CatalogEntry, ...]) -> None:
        self.models = found
        self.models_changed.emit()

    def _take_facts(self, facts: ModelFacts) -> None:
        self.facts, self.facts_error = facts, None
        self.facts_changed.emit()

    def _take_facts_error(self, error: EngineError) -> None:
        self.facts, self.facts_error = None, error
        self.facts_changed.emit()
