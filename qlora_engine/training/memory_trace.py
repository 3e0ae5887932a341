"""The memory of a run while it runs: samples into `memory.jsonl`, and the measured peak. Imports torch.

On CUDA the peak is the allocator's plus managed optimizer state; on the CPU it is counted: the model's tensors, the
optimizer's state, and the most that was alive during a step on the longest rows (memory.tracker).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from qlora_engine.events import Event, MemorySampled, Noticed, OptimizerBuilt
from qlora_engine.memory import tracker
from qlora_engine.monitor import paging
from qlora_engine.monitor.page_moves import PageMoves
from qlora_engine.monitor.sampler import Sampler
from qlora_engine.monitor.trace import TraceWriter

TRACE_HZ = 4.0
KEPT_FOR_EVENTS = 8
"""The trace has every sample; whoever follows the events sees the newest ones of a long step."""


class MemoryTrace:
    """Samples from entering to leaving; each is on disk before it is told. `moves` counts page moves if it was asked."""

    def __init__(self, parts: Any, moves: PageMoves | None = None, hz: float = TRACE_HZ) -> None:
        self._parts, self._moves = parts, moves
        self._is_moves_problem_told = moves is None or moves.why_not is None
        self._is_cuda = parts.plan.kind == "cuda"
        self._model_parts = model_parts(parts.model)
        self._report: tuple[int, paging.PagingReport] | None = None
        self._known_checkpoints = self._checkpoints_changed()
        self._gradient_bytes = 0
        self._was_restored = paging.state_count(parts.optimizer) > 0
        self._new: deque[dict[str, Any]] = deque(maxlen=KEPT_FOR_EVENTS)
        self._gpu_uuid = _gpu_uuid(parts.plan.index) if self._is_cuda else None
        self._hook: Any = None
        self._writer: TraceWriter | None = None
        self._sampler = Sampler(
            hz,
            on_sample=self._take,
            paged_source=self._paged,
            torch_source=self._allocator if self._is_cuda else None,
            parts_source=self._named_parts,
        )

    def __enter__(self) -> MemoryTrace:
        self._writer = TraceWriter(self._parts.folder.memory_path)
        self._hook = self._parts.optimizer.register_step_post_hook(self._after_step)
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(self._parts.plan.index)
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sampler.stop()
        self._hook.remove()
        if self._writer is not None:
            self._writer.close()

    def new_samples(self) -> Iterator[Event]:
        """The samples since the last call, as events, and once why page moves are not counted."""
        if not self._is_moves_problem_told and self._moves is not None:
            self._is_moves_problem_told = True
            yield Noticed(
                "warning", "monitor.page_moves", f"Page moves are not counted: {self._moves.why_not}"
            )
        while self._new:
            yield MemorySampled(self._new.popleft())

    def peak_bytes(self) -> int | None:
        """The measured peak so far, comparable with the estimate's `peak_bytes`; None while nothing was measured."""
        if self._is_cuda:
            return int(torch.cuda.max_memory_allocated(self._parts.plan.index)) + paging.managed_bytes()
        if self._parts.transient_peak_bytes is None:
            return None
        model = sum(self._model_parts.values()) + self._parts.fast.kept_bytes
        return model + self._parts.transient_peak_bytes + self._optimizer().state_bytes

    def optimizer_built(self) -> OptimizerBuilt:
        """What the optimizer keeps after its first step, of a new run and of a resumed one."""
        found = asdict(self._optimizer())
        alike = found.pop("alike")
        event = OptimizerBuilt(requested=self._parts.config.training.optimizer, **found)
        kinds = [{**state, "parameters": count} for state, count in alike]
        self._parts.folder.update(optimizer={**vars(event), "managed_bytes": self._managed(), "kinds": kinds})
        return event

    def _take(self, sample: dict[str, Any]) -> None:
        try:
            if self._writer is not None:
                self._writer.append(sample)
        finally:  # a full disk must not end the live picture
            self._new.append(sample)

    def _after_step(self, *_: object) -> None:
        """On the training thread, where alone `.grad` may be read: backward replaces it without the GIL, and a reader on
        another thread would hold freed memory."""
        self._known_checkpoints, self._was_restored = self._checkpoints_changed(), False
        if not self._gradient_bytes:
            trained = [p for group in self._parts.optimizer.param_groups for p in group["params"]]
            self._gradient_bytes = sum(p.grad.nbytes for p in trained if p.grad is not None)

    def _optimizer(self) -> paging.PagingReport:
        """Counted anew only when states came or went: a report of a large model takes milliseconds."""
        count = paging.state_count(self._parts.optimizer)
        if self._report is None or self._report[0] != count:
            self._report = (count, paging.optimizer_report(self._parts.optimizer))
        return self._report[1]

    def _managed(self) -> int:
        return paging.managed_bytes() if self._is_cuda else 0

    def _paged(self) -> dict[str, Any]:
        found = self._optimizer()
        return {
            "class_name": found.class_name,
            "managed_bytes": self._managed(),
            "state_bytes": found.state_bytes,
            "paged_bytes": found.paged_bytes,
            "pageable_bytes": found.pageable_bytes,
            "why_not_paged": found.why_not_paged,
            "was_restored": self._was_restored,
            "was_read_by_cpu": self._was_read_by_cpu(),
            **(self._moves.block() if self._moves is not None else {}),
        }

    def _was_read_by_cpu(self) -> bool:
        """A checkpoint was written since the last step: writing it reads managed states, which moves them to the CPU."""
        return self._checkpoints_changed() != self._known_checkpoints

    def _checkpoints_changed(self) -> int | None:
        """When, by the disk's own clock, which is behind the processor's."""
        try:
            return self._parts.folder.checkpoints_dir.stat().st_mtime_ns
        except OSError:
            return None

    def _allocator(self) -> dict[str, Any]:
        index = self._parts.plan.index
        return {
            "gpu_uuid": self._gpu_uuid,
            "allocated_bytes": torch.cuda.memory_allocated(index),
            "reserved_bytes": torch.cuda.memory_reserved(index),
            "peak_bytes": torch.cuda.max_memory_allocated(index),
        }

    def _named_parts(self) -> dict[str, Any]:
        """Bytes by part, under the estimate's names. `activations` are what a step on the longest rows had alive at its
        peak beyond the gradients, temporaries included; on CUDA torch's allocator tells them."""
        optimizer = self._optimizer().state_bytes
        named = {**self._model_parts, "gradients": self._gradient_bytes, "optimizer": optimizer}
        named["unquantized_weights"] += self._parts.fast.kept_bytes  # until they are given up
        peak = self._parts.transient_peak_bytes
        if peak is not None:
            named["activations"] = max(
                0, peak - self._model_parts["adapters"]
            )  # gradients are as large as adapters
        return {f"{name}_bytes": amount for name, amount in named.items()}


def model_parts(model: Any) -> dict[str, int]:
    """Bytes of a model's tensors by the estimate's names; each storage counts once."""
    packed: list[torch.Tensor] = []
    adapters: list[torch.Tensor] = []
    others: list[torch.Tensor] = list(model.buffers())
    for parameter in model.parameters():
        if getattr(parameter, "quant_state", None) is not None:
            packed.append(parameter)
        else:
            (adapters if parameter.requires_grad else others).append(parameter)
    return {
        "quantized_weights": tracker.tensor_bytes(packed),
        "quantization_constants": tracker.model_bytes(model)
        - tracker.tensor_bytes([*packed, *adapters, *others]),
        "unquantized_weights": tracker.tensor_bytes(others),
        "adapters": tracker.tensor_bytes(adapters),
    }


def _gpu_uuid(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)
