"""The memory of this machine, or of a GPU of the table, that a run has to fit into."""

from __future__ import annotations

from dataclasses import dataclass

from app.presenters.memory import MemoryState
from app.presenters.memory_words import Capacity, short_verdict, taken_besides
from app.studio import Studio
from qlora_engine.memory import gpus
from qlora_engine.memory.explain import Bar, Comparison
from qlora_engine.memory.variants import Estimate


@dataclass(frozen=True)
class NextRun:
    """`besides_bytes` are taken too: weights kept dequantized, experts dequantized together."""

    estimate: Estimate
    bar: Bar
    besides_bytes: int

    @property
    def device_bytes(self) -> int:
        return self.bar.device_likely + self.besides_bytes


def own_state(studio: Studio) -> MemoryState:
    """The memory of the run on this machine in a few words, whatever the Memory page asks "what if" of."""
    work = studio.workspace
    own = work.memory.own
    if own is None:
        return MemoryState()
    words = short_verdict(_chosen(studio, own), studio.room.own, own.estimate.besides_bytes)
    return MemoryState(short_verdict=words)


def next_run(studio: Studio) -> NextRun | None:
    """What the draft's run will take of this machine; None while nothing is known of its model."""
    own = studio.workspace.memory.own
    if own is None:
        return None
    bar = _chosen(studio, own)
    return NextRun(own.estimate, bar, taken_besides(bar, studio.room.own, own.estimate.besides_bytes))


def _chosen(studio: Studio, own: Comparison) -> Bar:
    """With one quantization of constants or two, as the draft has it."""
    is_double = studio.workspace.job.config.quantization.double_quant
    return own.bar("double_quant" if is_double else "single_quant")


def what_if_capacity(name: str | None) -> Capacity | None:
    if name is None:
        return None
    gpu = gpus.find(name)
    return Capacity(gpu.name, gpu.total_bytes, gpu.usable_bytes)
