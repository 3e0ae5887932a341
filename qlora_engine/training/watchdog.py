"""Stops a run that learns nothing or falls apart (CORRECTNESS 25). Torch-free.

The rules: a step whose loss or gradient norm is no finite number leaves the weights alone and counts as bad; so does one
whose gradient is exactly 0, or `EXPLODED` times longer than usual. `BAD_STEPS_IN_A_ROW` bad ones stop the run. After a bad
step no checkpoint is due, so the last good one is kept.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

from qlora_engine.errors import EngineError

BAD_STEPS_IN_A_ROW = 3
EXPLODED = 1000.0
NORMS_REMEMBERED, NORMS_TO_JUDGE = 50, 5


class Watchdog:
    """Looks at each step of this process."""

    def __init__(self) -> None:
        self._bad_steps = 0
        self._norms: deque[float] = deque(maxlen=NORMS_REMEMBERED)

    @property
    def is_content(self) -> bool:
        """False after a bad step: its weights are none to keep."""
        return self._bad_steps == 0

    def look(self, result: Any) -> None:
        """Judge one step.

        Raises:
            EngineError: `BAD_STEPS_IN_A_ROW` bad steps, with the likely causes.
        """
        if result.is_searching_scale:
            return
        has_exploded = self._has_exploded(result)
        is_bad = not result.is_applied or result.grad_norm == 0 or has_exploded
        self._bad_steps = self._bad_steps + 1 if is_bad else 0
        if not is_bad:
            self._norms.append(float(result.grad_norm))
        if self._bad_steps >= BAD_STEPS_IN_A_ROW:
            raise self._verdict(result, has_exploded)

    def _has_exploded(self, result: Any) -> bool:
        if len(self._norms) < NORMS_TO_JUDGE or not math.isfinite(result.grad_norm):
            return False
        return bool(result.grad_norm > EXPLODED * median(self._norms))

    def _verdict(self, result: Any, has_exploded: bool) -> EngineError:
        if not result.is_applied:
            return EngineError(
                "training.not_finite",
                f"the loss was not a number for {BAD_STEPS_IN_A_ROW} steps (loss {result.loss}, gradient norm {result.grad_norm})",
                "lower training.learning_rate, or use bf16 or fp32 as compute type; resume from the last checkpoint",
                is_input_error=False,
            )
        if has_exploded:
            return EngineError(
                "training.diverged",
                f"the gradient was {result.grad_norm:.3g} long for {BAD_STEPS_IN_A_ROW} steps, and {median(self._norms):.3g} before: the run falls apart",
                "lower training.learning_rate or training.max_grad_norm, raise training.warmup_ratio, and look for broken rows; "
                "the last checkpoint is from before",
                is_input_error=False,
            )
        return EngineError(
            "training.no_gradient",
            f"the gradient was exactly 0 for {BAD_STEPS_IN_A_ROW} steps: nothing is being learned",
            "check that the rows have trained tokens (`qlora data --show-mask`) and that adapters are attached",
            is_input_error=False,
        )


def require_learned(applied_steps: int, step: int) -> None:
    """At the end.

    Raises:
        EngineError: not one step changed the weights: the adapter is what it was at the start.
    """
    if step and not applied_steps:
        raise EngineError(
            "training.nothing_learned",
            f"none of the {step} steps could be applied: their gradients overflowed",
            "use bf16 or fp32 as quantization.compute_dtype, or train for more steps",
            is_input_error=False,
        )


def require_finite(tensors: Any, what: str) -> None:
    """Raise unless every number of the named tensors is finite.

    Raises:
        EngineError: an adapter that is no number is no result, and no checkpoint.
    """
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise EngineError(
            "training.not_finite",
            f"{what} holds values that are no numbers, {broken[0]} among {len(broken)}; it is not written",
            "lower training.learning_rate; resume from the last checkpoint, which is from before",
            is_input_error=False,
        )
