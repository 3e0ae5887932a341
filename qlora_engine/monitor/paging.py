"""What an optimizer really keeps, and how much of it is managed memory that can be paged to the CPU.

Read off the state tensors and bitsandbytes' page manager, never from the configuration. Torch-free at import.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qlora_engine.memory.optimizer_state import MIN_PAGED_ELEMENTS

MOMENTS = ("state1", "state2", "exp_avg", "exp_avg_sq")
TOO_SMALL = f"it has fewer than the {MIN_PAGED_ELEMENTS:,} elements from which bitsandbytes pages"
ON_CPU = "on the CPU there is nothing to page: the states are in the computer's memory already"
ORDINARY = "its states are in ordinary device memory, as after a resume that lost their paging"


@dataclass(frozen=True)
class ParameterState:
    """The state of one parameter: bytes of its moments and of all its state. `why_not_paged` is None where it is paged
    and where the optimizer never pages."""

    elements: int
    state_bytes: int
    paged_bytes: int
    pageable_bytes: int
    eight_bit_bytes: int
    why_not_paged: str | None


@dataclass(frozen=True)
class PagingReport:
    """Bytes of all states; `paged_bytes` are in managed buffers, `pageable_bytes` belong to parameters large enough
    to be paged on a GPU. `why_not_paged` explains a paged optimizer that pages nothing. `alike` says the same of each
    kind of parameter: (state, how many parameters are like it)."""

    class_name: str
    state_bytes: int
    paged_bytes: int
    pageable_bytes: int
    eight_bit_bytes: int
    why_not_paged: str | None
    alike: tuple[tuple[ParameterState, int], ...]


def optimizer_report(optimizer: Any) -> PagingReport:
    """What `optimizer` keeps now; states exist from the first step on. Callable while another thread steps."""
    kinds: dict[ParameterState, int] = {}
    for found in parameter_states(optimizer):
        kinds[found] = kinds.get(found, 0) + 1
    total, paged, pageable, eight_bit = (
        sum(getattr(kind, name) * count for kind, count in kinds.items())
        for name in ("state_bytes", "paged_bytes", "pageable_bytes", "eight_bit_bytes")
    )
    is_paged = bool(getattr(optimizer, "is_paged", False))
    reasons = {kind.why_not_paged for kind in kinds} if is_paged and not paged else set()
    why = next((reason for reason in (ON_CPU, ORDINARY) if reason in reasons), None)
    if why is None and reasons:
        why = f"every adapter tensor is smaller than the {MIN_PAGED_ELEMENTS:,} elements from which bitsandbytes pages"
    return PagingReport(
        type(optimizer).__name__,
        total,
        paged,
        pageable,
        eight_bit,
        why,
        tuple(sorted(kinds.items(), key=_size)),
    )


def parameter_states(optimizer: Any) -> Iterator[ParameterState]:
    """The state of each parameter that has one. What several share (code tables) counts for the first of them."""
    is_paged = bool(getattr(optimizer, "is_paged", False))
    seen: set[int] = set()
    for parameter, state in list(optimizer.state.items()):
        total = paged = eight_bit = moments = 0
        for name, value in list(state.items()):
            if not hasattr(value, "nbytes") or value.data_ptr() in seen:
                continue
            seen.add(value.data_ptr())
            total += value.nbytes
            if name in MOMENTS:
                moments += value.nbytes
                paged += value.nbytes if getattr(value, "is_paged", False) else 0
                eight_bit += value.nbytes if value.element_size() == 1 else 0
        if total:
            large = parameter.numel() >= MIN_PAGED_ELEMENTS
            why = _why_not(parameter, large) if is_paged and paged < moments else None
            yield ParameterState(parameter.numel(), total, paged, moments if large else 0, eight_bit, why)


def state_count(optimizer: Any) -> int:
    """A number that changes when the optimizer gets or loses a state; far cheaper than a report."""
    return sum(len(state) for state in list(optimizer.state.values()))


def managed_bytes() -> int:
    """Bytes of all buffers in bitsandbytes' page manager, which are never freed before the process ends."""
    import bitsandbytes.functional as functional

    return sum(buffer.nbytes for buffer in list(functional.GlobalPageManager.get_instance().paged_tensors))


def _why_not(parameter: Any, is_large: bool) -> str:
    if parameter.device.type == "cpu":
        return ON_CPU
    return ORDINARY if is_large else TOO_SMALL


def _size(kind: tuple[ParameterState, int]) -> tuple[int, int]:
    return -kind[0].elements, -kind[0].state_bytes
