"""The job being prepared: every edit goes through here, and is kept: that of a planned run in its folder, any other in the
settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from app.presenters.draft import Draft, recognised, restored, starter_draft
from app.services.settings import SettingsFile
from qlora_engine import config_io
from qlora_engine.config import TrainingConfig
from qlora_engine.errors import EngineError
from qlora_engine.runs import plans
from qlora_engine.runs.record import RunFolder

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
        self.scratch = self.draft
        """What is prepared without a folder of its own."""
        self.folder: Path | None = None
        """The planned run whose job this is."""
        self._timer = QTimer(self, singleShot=True, interval=SAVE_DELAY_MS)
        self._timer.timeout.connect(self._save)

    @property
    def config(self) -> TrainingConfig:
        return self.draft.config

    @property
    def device(self) -> str:
        chosen = self.config.model.device
        return chosen if chosen != "auto" else "cuda" if self.has_gpu else "cpu"

    def open(self, folder: Path | None) -> None:
        """Prepare this planned run, or what has no folder yet.

        Raises:
            EngineError: its job cannot be read.
        """
        if folder == self.folder:
            return
        self.save_now()
        if folder is None:
            draft = self.scratch
        else:
            config = RunFolder(folder).asked()[0]
            draft = recognised(config, is_cpu=not self.has_gpu)
        self.folder = folder
        self.put(draft)
        self._timer.stop()

    def begin_anew(self) -> None:
        """The scratch draft is the starter again."""
        self.scratch = starter_draft(is_cpu=not self.has_gpu)
        if self.folder is None:
            self.put(self.scratch)

    @property
    def is_touched(self) -> bool:
        """The scratch draft is not as a newcomer finds it."""
        return self.scratch.config != starter_draft(is_cpu=not self.has_gpu).config

    def edit(self, path: str, value: Any) -> None:
        self.put(self.draft.edited(path, value))

    def reset_option(self, path: str) -> None:
        self.put(self.draft.reset(path))

    def choose_model(self, name: str) -> None:
        if name and name != self.config.model.name:
            self.edit("model.name", name)

    def choose_data(self, path: str) -> None:
        """Numbers of rows to leave out were those of the old data."""
        if path and path != self.config.data.path:
            self.put(self.draft.edited("data.path", path).edited("data.leave_out", ""))

    def use_config(self, config: TrainingConfig) -> None:
        """Edit a copy of a run's settings or of a job file."""
        self.put(recognised(config, is_cpu=not self.has_gpu))

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
        if self.folder is None:
            self.scratch = draft
        self._timer.start()
        self.replaced.emit(before.config, draft.config)
        self.changed.emit()

    def save_now(self) -> None:
        if self._timer.isActive():
            self._timer.stop()
            self._save()

    def _save(self) -> None:
        if self.folder is not None:
            try:
                plans.edit(RunFolder(self.folder), self.config)
            except (EngineError, OSError) as error:
                logging.getLogger(__name__).warning("a draft was not saved: %s", error)
            return
        self._settings.change(job=config_io.to_dict(self.config), preset=self.draft.preset)
