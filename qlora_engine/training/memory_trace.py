"""The memory of a run while it runs: samples into `memory.jsonl`, and the measured peak. Imports torch.

On CUDA the peak is the allocator's plus managed optimizer state; on the CPU it is counted: the model's tensors, the
optimizer's state, and the most that was alive during a step on the longest rows (memory.tracker).
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO

import torch

from qlora_engine.events import Event, MemorySampled, OptimizerBuilt
from qlora_engine.memory import tracker
from qlora_engine.monitor import paging
from qlora_engine.monitor.sampler import Sampler

TRACE_HZ = 2.0
KEPT_FOR_EVENTS = 8


class MemoryTrace:
    """Samples from entering to leaving; each is on disk before it is shown."""

    def __init__(self, parts: Any) -> None:
        self._parts = parts
        self._new: deque[dict[str, Any]] = deque(maxlen=KEPT_FOR_EVENTS)
        self._file: TextIO | None = None
        self._lock = threading.Lock()
        self._sampler = Sampler(
            TRACE_HZ, on_sample=self._take, paged_source=self._paged, torch_source=self._allocator
        )

    def __enter__(self) -> MemoryTrace:
        self._file = self._parts.folder.memory_path.open("a", encoding="utf-8")
        if self._parts.plan.kind == "cuda":
            torch.cuda.reset_peak_memory_stats(self._parts.plan.index)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sampler.stop()
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def new_samples(self) -> Iterator[Event]:
        """The samples since the last call, as events."""
        while self._new:
            yield MemorySampled(self._new.popleft())

    def peak_bytes(self) -> int | None:
        """The measured peak so far, comparable with the estimate's `peak_bytes`; None while nothing was measured."""
        if self._parts.plan.kind == "cuda":
            return int(torch.cuda.max_memory_allocated(self._parts.plan.index)) + paging.managed_bytes()
        if self._parts.transient_peak_bytes is None:
            return None
        optimizer = paging.optimizer_report(self._parts.optimizer).state_bytes
        return tracker.model_bytes(self._parts.model) + self._parts.transient_peak_bytes + optimizer

    def optimizer_built(self) -> OptimizerBuilt:
        """What the optimizer keeps after its first step."""
        found = paging.optimizer_report(self._parts.optimizer)
        event = OptimizerBuilt(
            requested=self._parts.config.training.optimizer,
            class_name=found.class_name,
            state_bytes=found.state_bytes,
            paged_bytes=found.paged_bytes,
            pageable_bytes=found.pageable_bytes,
            eight_bit_bytes=found.eight_bit_bytes,
            why_not_paged=found.why_not_paged,
        )
        self._parts.folder.update(optimizer=dict(vars(event)))
        return event

    def _take(self, sample: dict[str, Any]) -> None:
        with self._lock:
            if self._file is not None:
                self._file.write(json.dumps(sample) + "\n")
                self._file.flush()
        self._new.append(sample)

    def _paged(self) -> dict[str, Any] | None:
        if self._parts.plan.kind != "cuda":
            return None
        return {"managed_bytes": paging.managed_bytes()}

    def _allocator(self) -> dict[str, Any] | None:
        if self._parts.plan.kind != "cuda":
            return None
        index = self._parts.plan.index
        return {
            "allocated_bytes": torch.cuda.memory_allocated(index),
            "reserved_bytes": torch.cuda.memory_reserved(index),
            "peak_bytes": torch.cuda.max_memory_allocated(index),
        }
