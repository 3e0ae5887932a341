"""Bytes of an optimizer's state by the rules of bitsandbytes 0.50 and torch. Pure arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MIN_8BIT_ELEMENTS = 4096
"""Smaller tensors keep 32-bit states (bitsandbytes/optim/optimizer.py, `min_8bit_size`)."""
MIN_PAGED_ELEMENTS = 100_000
"""Smaller states are ordinary device memory (`get_state_buffer`: numel < 1e5)."""
STATE_BLOCK = 256
"""Elements per absmax of an 8-bit state."""
FP32 = 4


@dataclass(frozen=True)
class StateBytes:
    """`pageable` can move to the CPU under pressure (managed memory); `resident` cannot."""

    resident: int
    pageable: int
    eight_bit: int

    @property
    def total(self) -> int:
        return self.resident + self.pageable


def state_bytes(
    optimizer: str, tensors: Iterable[tuple[int, int]], *, can_page: bool, element_bytes: int = FP32
) -> StateBytes:
    """State of `optimizer` over `tensors` given as (elements, how many of it). `can_page`: on a CUDA device.

    torch's AdamW keeps its moments in the parameters' own type, of `element_bytes`, and a step count per tensor.
    """
    if optimizer == "adamw_torch_fused":
        return StateBytes(
            sum(count * (2 * elements * element_bytes + FP32) for elements, count in tensors), 0, 0
        )
    states = 1 if optimizer.startswith("lion") else 2
    is_8bit = optimizer.endswith("8bit")
    is_paged = optimizer.startswith("paged") and can_page
    resident = pageable = eight_bit = 0
    for elements, count in tensors:
        uses_8bit = is_8bit and elements >= MIN_8BIT_ELEMENTS
        moments = states * elements * (1 if uses_8bit else FP32)
        if uses_8bit:
            eight_bit += count * moments
            resident += count * states * FP32 * -(-elements // STATE_BLOCK)
        if is_paged and elements >= MIN_PAGED_ELEMENTS:
            pageable += count * moments
        else:
            resident += count * moments
    if eight_bit:
        resident += states * 256 * FP32  # the shared code tables
    return StateBytes(resident, pageable, eight_bit)
