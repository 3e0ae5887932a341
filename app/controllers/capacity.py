"""The memory of this machine, or of a GPU of the table, that a run has to fit into."""

from __future__ import annotations

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
    own = work.memory.own
    words = short_verdict(own.bar(side), studio.room.own, own.estimate.besides_bytes)
    return MemoryState(short_verdict=words)


def what_if_capacity(name: str | None) -> Capacity | None:
    if name is None:
        return None
    gpu = gpus.find(name)
    return Capacity(gpu.name, gpu.total_bytes, gpu.usable_bytes)
