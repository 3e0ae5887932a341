"""What an optimizer really keeps, and how much of it is managed memory that can be paged to the CPU.

Read off the state tensors and bitsandbytes' page manager. Torch-free at import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlora_engine.memory.optimizer_state import MIN_PAGED_ELEMENTS

MOMENTS = ("state1", "state2", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class PagingReport:
    """Bytes of all states; `paged_bytes` are in managed buffers, `pageable_bytes` belong to parameters large enough
    to be paged on a GPU. `why_not_paged` explains a paged optimizer that pages nothing."""

    class_name: str
    state_bytes: int
    paged_bytes: int
    pageable_bytes: int
    eight_bit_bytes: int
    why_not_paged: str | None


def optimizer_report(optimizer: Any) -> PagingReport:
    """What `optimizer` keeps now; states exist from the first step on."""
    total = paged = pageable = eight_bit = 0
    seen: set[int] = set()
    on_cpu = False
    for parameter, state in optimizer.state.items():
        on_cpu = on_cpu or parameter.device.type == "cpu"
        for name, value in state.items():
            if not hasattr(value, "nbytes") or value.data_ptr() in seen:
                continue
            seen.add(value.data_ptr())
            total += value.nbytes
            if name in MOMENTS:
                paged += value.nbytes if getattr(value, "is_paged", False) else 0
                pageable += value.nbytes if parameter.numel() >= MIN_PAGED_ELEMENTS else 0
                eight_bit += value.nbytes if value.element_size() == 1 else 0
    is_paged = bool(getattr(optimizer, "is_paged", False))
    why = _why_not(on_cpu, pageable) if is_paged and not paged and total else None
    return PagingReport(type(optimizer).__name__, total, paged, pageable, eight_bit, why)


def managed_bytes() -> int:
    """Bytes of all buffers in bitsandbytes' page manager, which are never freed before the process ends."""
    import bitsandbytes.functional as functional

    return sum(buffer.nbytes for buffer in functional.GlobalPageManager.get_instance().paged_tensors)


def _why_not(on_cpu: bool, pageable: int) -> str:
    if on_cpu:
        return "on the CPU there is nothing to page: the states are in the computer's memory already"
    if not pageable:
        return f"every adapter tensor is smaller than the {MIN_PAGED_ELEMENTS:,} elements from which bitsandbytes pages"
    return "the states were put into ordinary device memory"
