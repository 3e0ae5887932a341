"""The job being prepared: its draft, the model's facts, the data's report, the memory it will need.

Every edit goes through here; each `*_changed` signal says what must be painted again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from app.presenters.draft import Draft, restored, starter_draft
from app.services.background import Background
from app.services.data_check import DataCheck
from app.services.data_place import DataPlace
from app.services.engine_thread import JobRunner
from app.services.model_fetch import ModelFetch
from app.services.settings import SettingsFile
from qlora_engine import config_io
from qlora_engine.config import TrainingConfig
from qlora_engine.errors import EngineError
from qlora_engine.jobs import RehearseJob
from qlora_engine.memory import estimate as closed_form
from qlora_engine.memory import explain, gpus
from qlora_engine.memory.context import context_of
from qlora_engine.memory.explain import Comparison
from qlora_engine.memory.gpus import Gpu
from qlora_engine.models import catalog
from qlora_engine.models.catalog import CatalogEntry
from qlora_engine.models.spec import ModelFacts

UNKNOWN_LENGTH = 512
"""Tokens per row assumed until the data has been looked at."""
NOTABLE_BYTES = 256 * 1024**2
"""Free GPU memory moves all the time; less than this does not change what is recommended."""
SAVE_DELAY_MS = 800
LOOK_DELAY_MS = 1200
"""How long nothing must change before the data is looked at without being asked."""


@dataclass(frozen=True)
class MemoryQuestion:
    """What to rehearse; drafts with equal keys have one answer."""

    key: str
    job: RehearseJob


class Workspace(QObject):
    """Lives in the GUI thread. `draft` and `facts` are the newest; None while unknown. `data` is what is trained on,
    `fetch` gets the model.

    `own` is the memory on this machine, `what_if` on the GPU chosen on the Memory page (None: this machine).
    """

    draft_changed = Signal()
    models_changed = Signal()
    facts_changed = Signal()
    estimate_changed = Signal()

    def __init__(
        self,
        settings: SettingsFile,
        background: Background,
        data_job: JobRunner,
        model_job: JobRunner,
    ) -> None:
        super().__init__()
        self._settings, self._background = settings, background
        kept = settings.value
        self.has_gpu = kept.had_gpu
        self.usable_gpu_bytes: int | None = None
        found = restored(kept.job, kept.preset, is_cpu=not self.has_gpu) if kept.job else None
        self.draft: Draft = found or starter_draft(is_cpu=not self.has_gpu)
        self.models: tuple[CatalogEntry, ...] | None = None
        self.facts: ModelFacts | None = None
        self.facts_error: EngineError | None = None
        self.data = DataCheck(data_job)
        self.place = DataPlace(background)
        self.fetch = ModelFetch(model_job)
        self.own: Comparison | None = None
        self.what_if: Comparison | None = None
        self._rehearsals: dict[str, Mapping[str, Any]] = {}
        self._save_timer = QTimer(self, singleShot=True, interval=SAVE_DELAY_MS)
        self._save_timer.timeout.connect(self._save)
        self._look_timer = QTimer(self, singleShot=True, interval=LOOK_DELAY_MS)
        self._look_timer.timeout.connect(self._look_at_data)
        self.may_look = False
        """True once data may be read without being asked."""
        self._may_begin = True
        self.data.changed.connect(self._data_changed)
        self.fetch.done.connect(self._fetched)

    # ------------------------------------------------------------ edits

    @property
    def config(self) -> TrainingConfig:
        return self.draft.config

    @property
    def device(self) -> str:
        chosen = self.config.model.device
        return chosen if chosen != "auto" else "cuda" if self.has_gpu else "cpu"

    @property
    def seq_len(self) -> int:
        """Tokens per row: as set, as the data report found, or assumed."""
        if self.config.data.seq_len is not None:
            return self.config.data.seq_len
        report = self.data.report
        return int(report["seq_len"]) if report else UNKNOWN_LENGTH

    @property
    def is_length_assumed(self) -> bool:
        """The length, and with it the memory, is a guess until the data are read."""
        return self.config.data.seq_len is None and self.data.report is None

    @property
    def micro_batch(self) -> int:
        """Rows computed at once on the device that is shown: as set, else as the run itself will choose them."""
        return self._rows_on("cuda" if self.gpu else self.device, gpus.find(self.gpu) if self.gpu else None)

    def _rows_on(self, device: str, gpu: Gpu | None = None) -> int:
        usable = gpu.usable_bytes if gpu is not None else self.usable_gpu_bytes
        if self.facts is None or self.draft.issues:
            return self.config.training.micro_batch or 1
        return closed_form.rows_at_once(
            self.facts,
            self.config,
            seq_len=self.seq_len,
            device=device,
            usable_bytes=None if device == "cpu" else usable,
            context=context_of(gpu.name if gpu is not None else None),
        )

    def set_usable_gpu_bytes(self, usable: int | None) -> None:
        """What this machine's GPU has left for a run; small movements change nothing."""
        before = self.usable_gpu_bytes
        if usable is not None and (before is None or abs(usable - before) > NOTABLE_BYTES):
            self.usable_gpu_bytes = usable
            self._estimate()

    def load(self) -> None:
        """Look around for the first time."""
        self.refresh_models()
        self._look_at_model()
        self.look_at_place()

    def look_at_place(self) -> None:
        """Files come and go."""
        self.place.look(self.config.data)

    def set_gpu(self, has_gpu: bool) -> None:
        """What the machine really has; settings nobody touched follow it."""
        if has_gpu == self.has_gpu:
            return
        self.has_gpu = has_gpu
        self._settings.change(had_gpu=has_gpu)
        self._set_draft(self.draft.on_device(is_cpu=not has_gpu))

    def edit(self, path: str, value: Any) -> None:
        self._set_draft(self.draft.edited(path, value))

    def reset_option(self, path: str) -> None:
        self._set_draft(self.draft.reset(path))

    def choose_preset(self, name: str) -> None:
        self._set_draft(self.draft.with_preset(name, self.facts.parameters if self.facts else None))

    def choose_model(self, name: str) -> None:
        if name and name != self.config.model.name:
            self.edit("model.name", name)

    def choose_data(self, path: str) -> None:
        if path and path != self.config.data.path:
            self.edit("data.path", path)

    def use_config(self, config: TrainingConfig, preset: str = "custom") -> None:
        """Edit a copy of a run's settings or of a job file."""
        self._set_draft(Draft(config, config, preset, not self.has_gpu))

    def add_folder(self, folder: str) -> None:
        folders = self._settings.value.folders
        if folder not in folders:
            self._settings.change(folders=(*folders, folder))
        self.refresh_models()

    def _set_draft(self, draft: Draft) -> None:
        before, self.draft = self.draft, draft
        self._save_timer.start()
        self.draft_changed.emit()
        old, new = before.config, draft.config
        is_other_model = (old.model.name, old.model.revision) != (new.model.name, new.model.revision)
        if is_other_model:
            self._forget_model()
        if is_other_model or old.model.offline != new.model.offline:
            self._look_at_model()
        if is_other_model or old.data != new.data:
            self._may_begin = True
            self.data.forget()
            self.look_at_place()
            self._look_timer.start()
        self._estimate()

    def _save(self) -> None:
        self._settings.change(job=config_io.to_dict(self.config), preset=self.draft.preset)

    def save_now(self) -> None:
        if self._save_timer.isActive():
            self._save_timer.stop()
            self._save()

    def close(self) -> None:
        """Keep what was edited, and say and ask nothing more."""
        self.save_now()
        self._look_timer.stop()
        for speaker in (self, self.data, self.fetch, self.place):
            speaker.blockSignals(True)

    # ------------------------------------------------------------ model

    def refresh_models(self) -> None:
        folders = self._settings.value.folders
        self._background.submit("models", lambda: tuple(catalog.list_models(folders)), self._take_models)

    def _take_models(self, found: tuple[CatalogEntry, ...]) -> None:
        self.models = found
        self.models_changed.emit()

    def _look_at_model(self) -> None:
        model = self.config.model
        self._background.submit(
            "facts",
            lambda: catalog.facts(model.name, model.revision, model.offline),
            self._take_facts,
            self._take_facts_error,
        )

    def _forget_model(self) -> None:
        """Nothing of another model is shown while the chosen one is being looked at."""
        self.facts = self.facts_error = self.own = self.what_if = None
        self.fetch.forget()
        self.facts_changed.emit()
        self.estimate_changed.emit()

    def _take_facts(self, facts: ModelFacts) -> None:
        self.facts, self.facts_error = facts, None
        self.facts_changed.emit()
        self._estimate()
        self._look_timer.start()

    def _take_facts_error(self, error: EngineError) -> None:
        self.facts, self.facts_error, self.own, self.what_if = None, error, None, None
        self.facts_changed.emit()
        self.estimate_changed.emit()

    def fetch_model(self) -> None:
        """Download or convert the chosen model now instead of at the start of the run."""
        self.fetch.begin(self.config.model)

    def _fetched(self) -> None:
        self.refresh_models()
        self._look_at_model()

    # ------------------------------------------------------------ data

    def check_data(self) -> None:
        """Look at the data now."""
        self._may_begin = True
        self.data.ask(self.config)

    def cancel_check(self) -> None:
        """Stop looking, and do not begin again by itself before something changes."""
        self._may_begin = False
        self.data.cancel()

    def _look_at_data(self) -> None:
        """Unasked: local data for a local model cost seconds and no network."""
        path = self.config.data.path
        is_local = path == "starter" or Path(path).expanduser().exists()
        has_model = self.facts is not None and self.facts.path is not None
        if (
            self.may_look
            and self._may_begin
            and self.data.is_open
            and is_local
            and has_model
            and not self.draft.issues
        ):
            self.data.ask(self.config)

    def _data_changed(self) -> None:
        if self.data.report is not None:
            self._estimate()
            if not self._is_model_ready():
                self.refresh_models()  # looking at the data has converted the model
                self._look_at_model()

    def _is_model_ready(self) -> bool:
        chosen = self.config.model.name
        return self.models is None or any(entry.name == chosen and entry.is_ready for entry in self.models)

    # ------------------------------------------------------------ memory

    @property
    def shown(self) -> Comparison | None:
        """What the Memory page shows: this machine, or the GPU of "what if"."""
        return self.what_if if self.gpu else self.own

    @property
    def question(self) -> MemoryQuestion | None:
        """What a rehearsal of the memory shown would answer; None while there is nothing to ask."""
        if self.facts is None or self.draft.issues:
            return None
        return self._question("cuda" if self.gpu else self.device, self.micro_batch)

    def take_rehearsal(self, question: MemoryQuestion, result: Mapping[str, Any]) -> None:
        """A rehearsed step's numbers replace the formula's wherever this question is shown."""
        self._rehearsals[question.key] = result
        self._estimate()

    def _question(self, device: str, rows: int) -> MemoryQuestion:
        """Two drafts with one key need the same memory in a step, but for double quantization: a rehearsal counts both."""
        config, training = self.config, self.config.training
        size = {"seq_len": self.seq_len, "micro_batch": rows, "device": device}
        facts = self.facts and (self.facts.name, self.facts.path, self.facts.parameters)
        parts = (
            facts, config.model.name, config.model.revision, size, config.data.packing, config.lora, training.optimizer,
            training.gradient_checkpointing, training.loss, bool(training.max_grad_norm),
            training.effective_batch > rows,
        )  # fmt: skip
        return MemoryQuestion(repr(parts), RehearseJob(config_io.to_dict(config), size))

    @property
    def gpu(self) -> str | None:
        """The GPU of the question "what if"; None: this machine."""
        return self._settings.value.gpu

    def choose_gpu(self, name: str | None) -> None:
        self._settings.change(gpu=name)
        self._estimate()

    def _estimate(self) -> None:
        """Arithmetic of a few milliseconds: here and now, so that the bars follow a dragged slider."""
        if self.facts is None or self.draft.issues:
            return
        try:
            self.own = self._comparison(self.facts, self.device)
            self.what_if = self._comparison(self.facts, "cuda", gpus.find(self.gpu)) if self.gpu else None
        except Exception:
            logging.getLogger(__name__).exception("the memory of %s cannot be computed", self.facts.name)
            self.own = self.what_if = None
        self.estimate_changed.emit()

    def _comparison(self, facts: ModelFacts, device: str, gpu: Gpu | None = None) -> Comparison:
        """The formula's numbers, or those of a rehearsal where there was one."""
        rows = self._rows_on(device, gpu)
        found = explain.compare(
            facts, self.config, seq_len=self.seq_len, micro_batch=rows, device=device, gpu=gpu,
            context=context_of(gpu.name if gpu is not None else None),
        )  # fmt: skip
        result = self._rehearsals.get(self._question(device, rows).key)
        return explain.with_rehearsal(found, result) if result is not None else found
