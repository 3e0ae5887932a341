"""The memory that a run on this machine has to fit into: one answer for everything that tells or judges by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import QObject, Signal

from app.presenters.memory_words import Capacity
from app.services.drafting import Drafting
from app.services.machine import Machine

NOTABLE_BYTES = 256 * 1024**2
"""Free memory moves all the time; less than this does not change what is told."""


class Room(QObject):
    """`own`: the GPU of this machine if the draft's run goes there, else its memory; None before the first sample.

    Signals: `changed` when `own` is another.
    """

    changed = Signal()

    def __init__(self, machine: Machine, job: Drafting) -> None:
        super().__init__()
        self._machine, self._job = machine, job
        self.own: Capacity | None = None
        machine.sampled.connect(self._look)
        job.changed.connect(self._look)

    def _look(self) -> None:
        sample = self._machine.latest
        found = capacity_of(sample, self._job.device) if sample is not None else None
        if found is not None and (self.own is None or _differs(found, self.own)):
            self.own = found
            self.changed.emit()


def capacity_of(sample: Mapping[str, Any], device: str) -> Capacity:
    """What a sample of the machine says of `device`; of its memory where there is no GPU to ask."""
    gpu = next(iter(sample.get("gpus") or ()), None)
    if device == "cuda" and gpu is not None and gpu.get("total_bytes"):
        others = gpu.get("others_bytes") or 0
        return Capacity(str(gpu.get("name") or "this GPU"), gpu["total_bytes"], gpu["total_bytes"] - others)
    host = sample["host"]
    return Capacity("this computer", host["total_bytes"], host["available_bytes"])


def _differs(found: Capacity, known: Capacity) -> bool:
    is_same = (found.name, found.total_bytes) == (known.name, known.total_bytes)
    return not is_same or abs(found.usable_bytes - known.usable_bytes) > NOTABLE_BYTES
