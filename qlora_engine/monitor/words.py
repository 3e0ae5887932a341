"""Memory in plain words: the line under the chart, the badge on a paged optimizer, the forecast. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_engine.memory.optimizer_state import MIN_PAGED_ELEMENTS, StateBytes
from qlora_engine.monitor.residency import gpu_of_run

GIB = 1024**3
MIB = 1024**2
NOTABLE_BYTES = GIB // 20
"""Differences under 0.05 GiB would be painted as 0.0."""
SLOWER_RATIO = 0.02


def memory_line(
    sample: Mapping[str, Any],
    predicted_bytes: int | None = None,
    reached_bytes: int | None = None,
    slowdown_ratio: float | None = None,
) -> str:
    """One line: "18.2 of 24.0 GiB; 0.4 GiB under the estimate; optimizer fully on the GPU".

    `predicted_bytes` and `reached_bytes` must be of the same kind (peak with peak, device with device); without
    `reached_bytes` the run's own use is compared. `slowdown_ratio`: how much longer steps take than before paging.
    """
    gpu = gpu_of_run(sample) or next(iter(sample.get("gpus") or ()), None)
    pieces = [_use(sample, gpu)]
    reached = reached_bytes if reached_bytes is not None else own_bytes(sample, gpu)
    pieces += [
        text
        for text in (against(predicted_bytes, reached), where(sample.get("paged"), slowdown_ratio))
        if text
    ]
    return "; ".join(pieces)


def own_bytes(sample: Mapping[str, Any], gpu: Mapping[str, Any] | None) -> int | None:
    """What the run itself uses: its processes' device memory and managed memory, on the host its resident memory."""
    if gpu is None:
        return (sample.get("host") or {}).get("process_resident_bytes")
    own = gpu.get("own_bytes")
    managed = (sample.get("paged") or {}).get("on_gpu_bytes") or 0
    return None if own is None else own + managed


def against(predicted: int | None, reached: int | None) -> str:
    """The distance to the estimate, empty when either is unknown."""
    if predicted is None or reached is None:
        return ""
    distance = predicted - reached
    if abs(distance) < NOTABLE_BYTES:
        return "as estimated"
    return f"{gib(abs(distance))} {'under' if distance > 0 else 'over'} the estimate"


def where(paged: Mapping[str, Any] | None, slowdown_ratio: float | None = None) -> str:
    """Where the optimizer's managed memory is; empty when there is nothing to say."""
    if not paged:
        return ""
    if not paged.get("managed_bytes"):
        return "optimizer not paged" if paged.get("why_not_paged") else ""
    on_cpu = paged.get("on_cpu_bytes")
    if on_cpu is None:
        return f"where the optimizer's {gib(paged['managed_bytes'])} are is unknown: {paged.get('residency_reason')}"
    if on_cpu <= max(paged.get("uncertainty_bytes") or 0, NOTABLE_BYTES - 1):
        return "optimizer fully on the GPU"
    about = "about " if paged.get("residency_kind") == "estimated" else ""
    text = f"{about}{gib(on_cpu)} of optimizer state is on the CPU"
    if slowdown_ratio is not None and slowdown_ratio >= SLOWER_RATIO:
        text += f": steps are about {slowdown_ratio * 100:.0f} % slower"
    return text


def paging_badge(class_name: str, paged_bytes: int, why_not_paged: str | None) -> str | None:
    """The badge on an optimizer that is called paged and pages nothing; None when there is nothing to warn of."""
    if not class_name.startswith("Paged") or paged_bytes:
        return None
    return f"{class_name} pages nothing: {why_not_paged or 'no state has been built yet'}"


def paging_forecast(
    *,
    optimizer: str,
    rank: int,
    state: StateBytes,
    device: str,
    peak_bytes: int | None = None,
    usable_bytes: int | None = None,
) -> str:
    """What can be paged, said before a run: "of 320 MiB optimizer state 168 MiB can be paged at rank 16; at this
    batch nothing should need to". `peak_bytes` and `usable_bytes` are of the device; unknown leaves the end out."""
    total = mib(state.total)
    if device != "cuda":
        return f"the {total} of optimizer state are in the computer's memory: on the CPU nothing is paged"
    if not optimizer.startswith("paged"):
        return f"{optimizer} does not page: its {total} of state stay on the GPU"
    if not state.pageable:
        return (
            f"of {total} optimizer state nothing can be paged at rank {rank}: "
            f"every adapter tensor has fewer than {MIN_PAGED_ELEMENTS:,} elements"
        )
    text = f"of {total} optimizer state {mib(state.pageable)} can be paged at rank {rank}"
    return text + _need(state.pageable, peak_bytes, usable_bytes)


def gib(amount: float) -> str:
    return f"{amount / GIB:.1f} GiB"


def mib(amount: float) -> str:
    return f"{amount / MIB:.0f} MiB" if amount >= 10 * MIB or amount == 0 else f"{amount / MIB:.1f} MiB"


def _need(pageable: int, peak: int | None, usable: int | None) -> str:
    if peak is None or usable is None:
        return ""
    short = peak - usable
    if short <= 0:
        return "; at this batch nothing should need to"
    if short <= pageable:
        return f"; at this batch about {mib(short)} will have to move, and steps will be slower"
    return f"; at this batch {mib(short)} are missing, more than paging can free"


def _use(sample: Mapping[str, Any], gpu: Mapping[str, Any] | None) -> str:
    if gpu is not None and gpu.get("used_bytes") is not None:
        return f"{gpu['used_bytes'] / GIB:.1f} of {gib(gpu['total_bytes'])}"
    host = sample["host"]
    used = host["total_bytes"] - host["available_bytes"]
    text = f"{used / GIB:.1f} of {gib(host['total_bytes'])} host memory"
    why = sample.get("gpu_problem") or ((gpu or {}).get("unavailable") or {}).get("used_bytes")
    return f"{text} ({why})" if why else text
