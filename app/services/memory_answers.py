"""The memory that the draft's run will need: on this machine, and on the GPU of "what if"."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QObject, Signal

from app.services.base_model import BaseModel
from app.services.data_check import DataCheck
from app.services.drafting import Drafting
from app.services.row_length import RowLength
from app.services.settings import SettingsFile
from qlora_engine import config_io
from qlora_engine.jobs import RehearseJob
from qlora_engine.memory import estimate as closed_form
from qlora_engine.memory import explain, gpus
from qlora_engine.memory.context import context_of
from qlora_engine.memory.explain import Comparison
from qlora_engine.memory.gpus import Gpu


@dataclass(frozen=True)
class MemoryQuestion:
    """What to rehearse; drafts with equal keys have one answer."""

    key: str
    job: RehearseJob


class MemoryAnswers(QObject):
    """`own` is the memory on this machine, `what_if` on the GPU chosen on the Memory page (None: this machine).

    Signals: `changed`.
    """

    changed = Signal()

    def __init__(self, settings: SettingsFile, job: Drafting, base: BaseModel, data: DataCheck) -> None:
        super().__init__()
        self._settings, self._job, self._base = settings, job, base
        self.length = RowLength(job, data)
        self.usable_gpu_bytes: int | None = None
        self.own: Comparison | None = None
        self.what_if: Comparison | None = None
        self._rehearsals: dict[str, Mapping[str, Any]] = {}
        self._rows: dict[str, tuple[tuple[Any, ...], int]] = {}

    @property
    def gpu(self) -> str | None:
        """The GPU of the question "what if"; None: this machine."""
        return self._settings.value.gpu

    @property
    def shown(self) -> Comparison | None:
        """What the Memory page shows: this machine, or the GPU of "what if"."""
        return self.what_if if self.gpu else self.own

    @property
    def micro_batch(self) -> int:
        """Rows computed at once on the device that is shown: as set, else as the run itself will choose them."""
        return self._rows_on(self._shown_device, gpus.find(self.gpu) if self.gpu else None)

    @property
    def question(self) -> MemoryQuestion | None:
        """What a rehearsal of the memory shown would answer; None while there is nothing to ask."""
        if self._base.facts is None or self._job.draft.issues:
            return None
        return question_of(self._job, self._base, self.micro_batch, self.length.tokens, self._shown_device)

    def choose_gpu(self, name: str | None) -> None:
        self._settings.change(gpu=name)
        self.estimate()

    def set_usable_gpu_bytes(self, usable: int | None) -> None:
        """What this machine's GPU has left for a run, as `Room` tells."""
        if usable is not None and usable != self.usable_gpu_bytes:
            self.usable_gpu_bytes = usable
            self.estimate()

    def take_rehearsal(self, question: MemoryQuestion, result: Mapping[str, Any]) -> None:
        """A rehearsed step's numbers replace the formula's wherever this question is shown."""
        self._rehearsals[question.key] = result
        self.estimate()

    def forget(self) -> None:
        """Nothing is known of the model that is chosen now."""
        self.own = self.what_if = None
        self.changed.emit()

    def estimate(self) -> None:
        """Arithmetic of a few milliseconds: here and now, so that the bars follow a dragged slider."""
        if self._base.facts is None or self._job.draft.issues:
            return
        try:
            self.own = self._comparison(self._job.device)
            self.what_if = self._comparison("cuda", gpus.find(self.gpu)) if self.gpu else None
        except Exception:
            name = self._base.facts.name
            logging.getLogger(__name__).exception("the memory of %s cannot be computed", name)
            self.own = self.what_if = None
        self.changed.emit()

    @property
    def _shown_device(self) -> str:
        return "cuda" if self.gpu else self._job.device

    def _rows_on(self, device: str, gpu: Gpu | None = None) -> int:
        usable = gpu.usable_bytes if gpu is not None else self.usable_gpu_bytes
        if self._base.facts is None or self._job.draft.issues:
            return self._job.config.training.micro_batch or 1
        name = gpu.name if gpu is not None else None
        asked = (self._base.facts, self._job.config, self.length.tokens, usable)
        known = self._rows.get(f"{device} {name}")
        if known is None or known[0] != asked:  # asked several times per move of a slider
            known = self._rows[f"{device} {name}"] = (asked, self._rows_that_fit(device, name, usable))
        return known[1]

    def _rows_that_fit(self, device: str, gpu_name: str | None, usable: int | None) -> int:
        assert self._base.facts is not None
        return closed_form.rows_at_once(
            self._base.facts,
            self._job.config,
            seq_len=self.length.tokens,
            device=device,
            usable_bytes=None if device == "cpu" else usable,
            context=context_of(gpu_name),
        )

    def _comparison(self, device: str, gpu: Gpu | None = None) -> Comparison:
        """The formula's numbers, or those of a rehearsal where there was one."""
        assert self._base.facts is not None
        rows = self._rows_on(device, gpu)
        found = explain.compare(
            self._base.facts, self._job.config, seq_len=self.length.tokens, micro_batch=rows, device=device, gpu=gpu,
            context=context_of(gpu.name if gpu is not None else None),
        )  # fmt: skip
        question = question_of(self._job, self._base, rows, self.length.tokens, device)
        result = self._rehearsals.get(question.key)
        return explain.with_rehearsal(found, result) if result is not None else found


def question_of(job: Drafting, base: BaseModel, rows: int, seq_len: int, device: str) -> MemoryQuestion:
    """Two drafts with one key need the same memory in a step, but for double quantization: a rehearsal counts both."""
    config, training = job.config, job.config.training
    size = {"seq_len": seq_len, "micro_batch": rows, "device": device}
    facts = base.facts and (base.facts.name, base.facts.path, base.facts.parameters)
    parts = (
        facts, config.model.name, config.model.revision, size, config.data.packing, config.lora, training.optimizer,
        training.gradient_checkpointing, training.checkpoint_every, training.offload_inputs, training.loss, bool(training.max_grad_norm), training.effective_batch > rows,
    )  # fmt: skip
    return MemoryQuestion(repr(parts), RehearseJob(config_io.to_dict(config), size))
