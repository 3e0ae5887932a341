"""Memory page: this machine, or any GPU of the table."""

from __future__ import annotations

from typing import Any

from app.controllers.options import option_values
from app.presenters.memory import Capacity, MemoryState, memory_state
from app.screens.memory import MemoryScreen
from app.studio import Studio
from qlora_engine.memory import gpus


class MemoryController:
    def __init__(self, studio: Studio, screen: MemoryScreen) -> None:
        self._studio, self._screen = studio, screen
        work = studio.workspace
        work.estimate_changed.connect(self.paint)
        work.draft_changed.connect(self.paint_options)
        screen.edited.connect(work.edit)
        screen.reset_asked.connect(work.reset_option)
        screen.gpu_chosen.connect(lambda name: work.choose_gpu(name or None))
        self.paint()
        self.paint_options()

    def paint(self) -> None:
        work = self._studio.workspace
        found = work.what_if if work.gpu else work.own
        self._screen.show_state(
            memory_state(
                found, what_if_capacity(work.gpu) or own_capacity(self._studio),
                is_double=work.config.quantization.double_quant, gpu=work.gpu,
                length_note="" if work.report or work.config.data.seq_len else " (assumed until the data is checked)",
            )
        )  # fmt: skip

    def paint_options(self) -> None:
        self._screen.render_options(*option_values(self._studio.workspace.draft))


def own_state(studio: Studio) -> MemoryState:
    """The memory of the run on this machine, whatever the Memory page asks "what if" of."""
    work = studio.workspace
    return memory_state(
        work.own, own_capacity(studio), is_double=work.config.quantization.double_quant, gpu=None
    )


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
    if studio.workspace.device == "cuda" and gpu is not None and gpu.get("total_bytes"):
        others = gpu.get("others_bytes") or 0
        return Capacity(str(gpu.get("name") or "this GPU"), gpu["total_bytes"], gpu["total_bytes"] - others)
    host = sample["host"]
    return Capacity("this computer", host["total_bytes"], host["available_bytes"])
