"""Memory in plain words: the line under the chart, the badge on a paged optimizer, the forecast. Torch-free.

The words are the window's too, which writes numbers as its language does: `Figures`.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_engine.memory.optimizer_state import MIN_PAGED_ELEMENTS, StateBytes
from qlora_engine.monitor.parts import gpu_shown

GIB = 1024**3
MIB = 1024**2
NOTABLE_BYTES = GIB // 20
"""Smaller differences are called none."""
SLOWER_RATIO = 0.02
ALARMING = ("hardware slowdown", "too warm (driver)", "too warm (hardware)", "power brake")


@dataclass(frozen=True)
class Figures:
    """How numbers are written: `decimal` gives one with so many places, `measured` a figure with its unit."""

    decimal: Callable[[float, int], str] = "{:,.{}f}".format
    measured: Callable[[str, str], str] = "{} {}".format

    def gib(self, amount: float) -> str:
        return self.measured(self.decimal(amount / GIB, 2), "GiB")

    def mib(self, amount: float) -> str:
        places = 0 if amount >= 10 * MIB or amount == 0 else 1
        return self.measured(self.decimal(amount / MIB, places), "MiB")

    def percent(self, ratio: float) -> str:
        return self.measured(self.decimal(100 * ratio, 0), "%")


PLAIN = Figures()


def memory_line(
    sample: Mapping[str, Any],
    predicted_bytes: int | None = None,
    reached_bytes: int | None = None,
    slowdown_ratio: float | None = None,
    figures: Figures = PLAIN,
) -> str:
    """One line: "18.20 of 24.00 GiB; 0.40 GiB under the estimate; optimizer fully on the GPU".

    `predicted_bytes` and `reached_bytes` must be of the same kind (peak with peak, device with device); without
    `reached_bytes` the run's own use is compared. `slowdown_ratio`: how much longer steps take than before paging.
    """
    gpu = gpu_shown(sample)
    reached = reached_bytes if reached_bytes is not None else own_bytes(sample, gpu)
    pieces = (
        _use(sample, gpu, figures),
        against(predicted_bytes, reached, figures),
        where(sample.get("paged"), slowdown_ratio, figures),
        spilled(sample.get("torch"), figures),
        held_back(gpu),
    )
    return "; ".join(text for text in pieces if text)


def own_bytes(sample: Mapping[str, Any], gpu: Mapping[str, Any] | None) -> int | None:
    """What the run itself uses: its processes' device memory and managed memory, on the host its resident memory."""
    if gpu is None:
        return (sample.get("host") or {}).get("process_resident_bytes")
    own = gpu.get("own_bytes")
    managed = (sample.get("paged") or {}).get("on_gpu_bytes") or 0
    return None if own is None else own + managed


def against(predicted: int | None, reached: int | None, figures: Figures = PLAIN) -> str:
    """The distance to the estimate, empty when either is unknown."""
    if predicted is None or reached is None:
        return ""
    distance = predicted - reached
    if abs(distance) < NOTABLE_BYTES:
        return "as estimated"
    return f"{figures.gib(abs(distance))} {'under' if distance > 0 else 'over'} the estimate"


def where(
    paged: Mapping[str, Any] | None, slowdown_ratio: float | None = None, figures: Figures = PLAIN
) -> str:
    """Where the optimizer's managed memory is; empty when there is nothing to say."""
    if not paged:
        return ""
    if not paged.get("managed_bytes"):
        return "optimizer not paged" if paged.get("why_not_paged") else ""
    on_cpu = paged.get("on_cpu_bytes")
    if on_cpu is None:
        return f"where the optimizer's {figures.gib(paged['managed_bytes'])} are is unknown: {paged.get('residency_reason')}"
    if on_cpu <= max(paged.get("uncertainty_bytes") or 0, NOTABLE_BYTES - 1):
        return "optimizer fully on the GPU"
    about = "about " if paged.get("residency_kind") == "estimated" else ""
    text = f"{about}{figures.gib(on_cpu)} of optimizer state is on the CPU"
    if slowdown_ratio is not None and slowdown_ratio >= SLOWER_RATIO:
        text += f": steps are about {figures.percent(slowdown_ratio)} slower"
    return text


def spilled(torch: Mapping[str, Any] | None, figures: Figures = PLAIN) -> str:
    """The warning that the driver put the run's memory into system memory (Windows); else empty."""
    amount = (torch or {}).get("spilled_bytes")
    if not amount:
        return ""
    return f"{figures.gib(amount)} of the run is in shared GPU memory, which is system memory: steps are much slower"


def held_back(gpu: Mapping[str, Any] | None) -> str:
    """What slows the GPU down and should not: heat, hardware, power supply. That it works at its power limit is usual."""
    reasons = [reason for reason in (gpu or {}).get("throttle_reasons") or () if reason in ALARMING]
    return f"the GPU is held back: {', '.join(reasons)}" if reasons else ""


def paging_badge(
    class_name: str, paged_bytes: int, why_not_paged: str | None, why_never: str | None = None
) -> str | None:
    """The badge on an optimizer that is called paged and pages nothing, or cannot on this computer (`why_never`, see
    `residency.why_never_paged`); None when there is nothing to warn of."""
    if not class_name.startswith("Paged"):
        return None
    if not paged_bytes:
        return f"{class_name} pages nothing: {why_not_paged or 'no state has been built yet'}"
    return f"{class_name} protects nothing here: {why_never}" if why_never else None


def paging_forecast(
    *,
    optimizer: str,
    rank: int,
    state: StateBytes,
    device: str,
    peak_bytes: int | None = None,
    usable_bytes: int | None = None,
    why_never: str | None = None,
    figures: Figures = PLAIN,
) -> str:
    """What can be paged, said before a run: "of 320 MiB optimizer state 168 MiB can be paged at rank 16; at this
    batch nothing should need to". `peak_bytes` and `usable_bytes` are of the device; unknown leaves the end out.
    `why_never`: see `residency.why_never_paged`."""
    total = figures.mib(state.total)
    if device != "cuda":
        return f"the {total} of optimizer state are in the computer's memory: on the CPU nothing is paged"
    if not optimizer.startswith("paged"):
        return f"{optimizer} does not page: its {total} of state stay on the GPU"
    if not state.pageable:
        return (
            f"of {total} optimizer state nothing can be paged at rank {rank}: "
            f"every adapter tensor has fewer than {figures.decimal(MIN_PAGED_ELEMENTS, 0)} elements"
        )
    if why_never:
        return f"the {total} of optimizer state stay on the GPU: {why_never}"
    text = f"of {total} optimizer state {figures.mib(state.pageable)} can be paged at rank {rank}"
    return text + _need(state.pageable, peak_bytes, usable_bytes, figures)


def _need(pageable: int, peak: int | None, usable: int | None, figures: Figures) -> str:
    if peak is None or usable is None:
        return ""
    short = peak - usable
    if short <= 0:
        return "; at this batch nothing should need to"
    if short <= pageable:
        return f"; at this batch about {figures.mib(short)} will have to move, and steps will be slower"
    return f"; at this batch {figures.mib(short)} are missing, more than paging can free"


def _use(sample: Mapping[str, Any], gpu: Mapping[str, Any] | None, figures: Figures) -> str:
    if gpu is not None and gpu.get("used_bytes") is not None:
        return f"{figures.decimal(gpu['used_bytes'] / GIB, 2)} of {figures.gib(gpu['total_bytes'])}"
    why = sample.get("gpu_problem") or ((gpu or {}).get("unavailable") or {}).get("used_bytes")
    host = sample.get("host")
    text = "host memory n/a"
    if host:
        used = host["total_bytes"] - host["available_bytes"]
        text = f"{figures.decimal(used / GIB, 2)} of {figures.gib(host['total_bytes'])} host memory"
    return f"{text} ({why})" if why else text


class Slowdown:
    """How much longer steps take while optimizer state is on the CPU than they took while none was."""

    def __init__(self) -> None:
        self._free: deque[float] = deque(maxlen=50)
        self._paged: deque[float] = deque(maxlen=5)

    def note(self, step_seconds: float, on_cpu_bytes: int | None) -> None:
        """One step; `on_cpu_bytes` from the newest sample, None where it is unknown: then the step says nothing."""
        if on_cpu_bytes is not None:
            (self._paged if on_cpu_bytes >= NOTABLE_BYTES else self._free).append(step_seconds)
            if on_cpu_bytes < NOTABLE_BYTES:
                self._paged.clear()

    @property
    def ratio(self) -> float | None:
        """0.12 means 12 % longer; None until there are three steps of each kind."""
        if min(len(self._free), len(self._paged)) < 3:
            return None
        return statistics.median(self._paged) / statistics.median(self._free) - 1
