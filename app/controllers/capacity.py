"""The memory of this machine, or of a GPU of the table, that a run has to fit into."""

from __future__ import annotations

from dataclasses import dataclass

from app.presenters.memory_words import Capacity, taken_besides, verdict_text
from app.studio import Studio
from qlora_engine.memory import gpus
from qlora_engine.memory.explain import Bar
from qlora_engine.memory.variants import Estimate, side_of


@dataclass(frozen=True)
class NextRun:
    """`besides_bytes` are taken too: weights kept dequantized, experts dequantized together."""

    estimate: Estimate
    bar: Bar
    besides_bytes: int

    @property
    def device_bytes(self) -> int:
        return self.bar.device_likely + self.besides_bytes


def next_run(studio: Studio) -> NextRun | None:
    """What the draft's run will take of this machine, whatever the Memory page asks "what if" of; None while nothing is known
    of its model."""
    own = studio.workspace.memory.own
    if own is None:
        return None
    bar = own.bar(side_of(studio.workspace.job.config))
    return NextRun(own.estimate, bar, taken_besides(bar, studio.room.own, own.estimate.besides_bytes))


def next_verdict(studio: Studio) -> str:
    """The same in a few words."""
    planned = next_run(studio)
    return "n/a" if planned is None else verdict_text(planned.device_bytes, studio.room.own)


def what_if_capacity(name: str | None) -> Capacity | None:
    if name is None:
        return None
    gpu = gpus.find(name)
    return Capacity(gpu.name, gpu.total_bytes, gpu.usable_bytes)
