"""The memory of this machine, or of a GPU of the table, that a run has to fit into."""

from __future__ import annotations

from typing import Any

from app.presenters.memory import MemoryState
from app.presenters.memory_words import Capacity, short_verdict
from app.studio import Studio
from qlora_engine.memory import gpus


def own_state(studio: Studio) -> MemoryState:
    """The memory of the run on this machine in a few words, whatever the Memory page asks "what if" of."""
    work = studio.workspace
    if work.memory.own is None:
        return MemoryState()
    side = "double_quant" if work.job.config.quantization.double_quant else "single_quant"
    return MemoryState(short_verdict=short_verdict(work.memory.own.bar(side), own_capacity(studio)))


def what_if_capacity(name: str | None) -> Capacity | None:
    if name is None:
        return None
    gpu = gpus.find(name)
    return Capacity(gpu.name, gpu.total_bytes, gpu.usable_bytes)


def own_capacity(studio: Studio) -> Capacity | None:
    """The GPU of this machine if the run goes there, else its memory; None before the first sample."""
    sample: dict[str, Any] | None = studio.machine.latest
    if sample is None:
        return None
    gpu = next(iter(sample.get("gpus") or ()), None)
    if studio.workspace.job.device == "cuda" and gpu is not None and gpu.get("total_bytes"):
        others = gpu.get("others_bytes") or 0
        return Capacity(str(gpu.get("name") or "this GPU"), gpu["total_bytes"], gpu["total_bytes"] - others)
    host = sample["host"]
    return Capacity("this computer", host["total_bytes"], host["available_bytes"])
