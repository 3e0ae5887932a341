"""Whether a run compiles its decoder blocks: where that is wanted, gives the same numbers and is faster. Imports the ML stack."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from qlora_engine.events import Event, Noticed, PhaseChanged
from qlora_engine.training import steps
from qlora_engine.training.fast import compiled, trial

MARGIN = 0.05
"""Blocks are compiled where that takes at least this share of a pass's time away: less is within what a clock tells."""
TIMED = 3
"""Passes that are timed; the quickest counts."""
Numbers = tuple[float, list[torch.Tensor | None]]
"""Loss and gradients."""
PUT_TOGETHER = "the compiler puts these operations together"


def choose(parts: Any, check: Callable[[], None]) -> Iterator[Event]:
    """Compile the blocks of `parts.model`, or leave them; what was found is in `parts.fast`, and said. `check` may raise."""
    wanted = parts.config.training.compile_blocks
    if wanted == "off":
        return
    yield PhaseChanged("preparing", "Compiling the decoder blocks")
    passes = _Passes(parts, check)
    problem = trial.reason(lambda: _tried(parts, passes, must_gain=wanted == "auto"))
    if problem is not None:
        parts.fast.why_not["compile_blocks"] = problem
        yield Noticed("info", "speed.compiled", f"The decoder blocks are not compiled: {problem}")
        return
    yield Noticed(
        "info", "speed.compiled", f"The decoder blocks are compiled: {_gain_words(parts.fast.compile_gain)}"
    )


def _tried(parts: Any, passes: _Passes, *, must_gain: bool) -> str | None:
    """Why the blocks are not compiled; None where they are from here on."""
    wanted, before = passes.numbers(), passes.seconds()
    if passes.are_random:
        return "a pass draws random numbers, and compiled code would draw others"
    fast, model = parts.fast, parts.model
    bring_back = fast.set_aside(model)
    is_kept = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\.")  # of what the compiler does by itself
            compiled.install(model)
            problem = passes.differ_from(wanted) or passes.slower_by(before, must_gain)
        is_kept = problem is None
    finally:
        if not is_kept:
            compiled.remove(model)
            bring_back()
    if is_kept:
        parts.predicted_peak_bytes = (parts.predicted_peak_bytes or 0) - fast.leave_aside(PUT_TOGETHER)
        fast.compiles_blocks, fast.compile_gain = True, passes.gain
        compiled.never_fail()
    return problem


class _Passes:
    """Forward and backward on the first and the last micro-batch of the first step, whose rows differ in length."""

    def __init__(self, parts: Any, check: Callable[[], None]) -> None:
        self._parts, self._check = parts, check
        rows = [parts.data.train[i] for i in parts.schedule.rows_of(0)]
        groups = list(steps.in_groups(parts.fast.arranged(rows), parts.micro_batch))
        self._groups = groups[:1] + groups[1:][-1:]
        self.are_random = False
        self.gain = 0.0

    def numbers(self) -> list[Numbers]:
        """Of each micro-batch."""
        return [self._one(group) for group in self._groups]

    def differ_from(self, wanted: Sequence[Numbers]) -> str | None:
        """Why the numbers are not those that are `wanted`; None where they are."""
        dtype = getattr(torch, self._parts.plan.torch_dtype_name)
        allowed = trial.TOLERANCE.get(dtype, trial.TOLERANCE_16_BIT)
        for (loss, gradients), (plain_loss, plain) in zip(self.numbers(), wanted, strict=True):
            off = abs(loss - plain_loss) / max(abs(plain_loss), 1e-6)
            if not off <= allowed:
                return f"the loss differs by {off:.1e}"
            problem = trial.gradient_problem(gradients, plain, dtype)
            if problem is not None:
                return problem
        return None

    def seconds(self) -> float:
        """Of all micro-batches, gradients included."""
        quickest = float("inf")
        for _ in range(TIMED):
            began = time.perf_counter()
            self.numbers()
            quickest = min(quickest, time.perf_counter() - began)
        return quickest

    def slower_by(self, before: float, must_gain: bool) -> str | None:
        """Measure the gain over `before`; why it is too small, None where it is not or need not be large."""
        self.gain = 1.0 - self.seconds() / before
        if must_gain and self.gain < MARGIN:
            return f"{_gain_words(self.gain)}, and less than {MARGIN:.0%} is no gain"
        return None

    def _one(self, rows: Any) -> Numbers:
        self._check()
        parts = self._parts
        trained, state = steps.trained_of(parts.model), steps.rng_state()
        try:
            batch = parts.fast.batch(rows, parts.pad_token_id).to(parts.plan.name)
            loss = steps.backward_alone(parts, batch, divisor=batch.trained)
            if parts.plan.kind == "cuda":
                torch.cuda.synchronize()
            return float(loss), [p.grad for p in trained]
        finally:
            self.are_random |= not _is_same(state, steps.rng_state())
            steps.restore_rng_state(state)
            parts.optimizer.zero_grad(set_to_none=True)
            parts.fast.forget()


def _is_same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip((one[0], *one[1]), (other[0], *other[1]), strict=True))


def _gain_words(gain: float) -> str:
    return f"a pass takes {abs(gain):.0%} {'less' if gain >= 0 else 'more'} time"
