"""The job being prepared: every edit goes through here, and is kept for the next start."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from app.presenters.draft import Draft, restored, starter_draft
from app.services.settings import SettingsFile
from qlora_engine import config_io
from qlora_engine.config import TrainingConfig

SAVE_DELAY_MS = 800


class Drafting(QObject):
    """Signals: `replaced(old, new)` with both configurations, for what must follow first; `changed` for who paints."""

    replaced = Signal(object, object)
    changed = Signal()

    def __init__(self, settings: SettingsFile) -> None:
        super().__init__()
        self._settings = settings
        kept = settings.value
        self.has_gpu = kept.had_gpu
        found = restored(kept.job, kept.preset, is_cpu=not self.has_gpu) if kept.job else None
        self.draft: Draft = found or starter_draft(is_cpu=not self.has_gpu)
        self._timer = QTimer(self, singleShot=True, interval=SAVE_DELAY_MS)
        self._timer.timeout.connect(self._save)

    @property
    def config(self) -> TrainingConfig:
        return self.draft.config

    @property
    def device(self) -> str:
        chosen = self.config.model.device
        return chosen if chosen != "auto" else "cuda" if self.has_gpu else "cpu"

    def edit(self, path: str, value: Any) -> None:
        self.put(self.draft.edited(path, value))

    def reset_option(self, path: str) -> None:
        self.put(self.draft.reset(path))

    def choose_model(self, name: str) -> None:
        if name and name != self.config.model.name:
            self.edit("model.name", name)

    def choose_data(self, path: str) -> None:
        if path and path != self.config.data.path:
            self.edit("data.path", path)

    def use_config(self, config: TrainingConfig, preset: str = "custom") -> None:
        """Edit a copy of a run's settings or of a job file."""
        self.put(Draft(config, config, preset, not self.has_gpu))

    def set_gpu(self, has_gpu: bool) -> None:
        """What the machine really has; settings nobody touched follow it."""
        if has_gpu == self.has_gpu:
            return
        self.has_gpu = has_gpu
        self._settings.change(had_gpu=has_gpu)
        self.put(self.draft.on_device(is_cpu=not has_gpu))

    def put(self, draft: Draft) -> None:
        """Another draft, whatever it differs in."""
        before, self.draft = self.draft, draft
        self._timer.start()
        self.replaced.emit(before.config, draft.config)
        self.changed.emit()

    def save_now(self) -> None:
        if self._timer.isActive():
            self._timer.stop()
            self._save()

    def _save(self) -> None:
        self._settings.change(job=config_io.to_dict(self.config), preset=self.draft.preset)
