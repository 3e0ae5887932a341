"""Out of memory, of the GPU or the computer: go on with less of it instead of dying (CORRECTNESS 27). Imports torch.

One ladder, the cheapest step first: weights that were dequantized once and kept are given up, experts that were dequantized together
go one by one; half the micro-batch, as often as it can be halved; activations recomputed, of every block; the loss in chunks; activations kept in the computer's memory.
The effective batch stays what the person asked for: the same rows, in more pieces. What was changed is said, and kept in every checkpoint.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from qlora_engine import out_of_memory
from qlora_engine.errors import EngineError
from qlora_engine.events import Event, Noticed
from qlora_engine.out_of_memory import is_out_of_memory
from qlora_engine.training import recomputing
from qlora_engine.training.checkpoint import TrainState
from qlora_engine.training.fast import allocator

T = TypeVar("T")
KEPT, GROUPED, RECOMPUTED, CHUNKED, OFFLOADED = (
    "kept weights", "grouped experts", "checkpointing", "chunked loss", "offloading",
)  # fmt: skip
RELIEFS = {
    KEPT: "weights are dequantized in every pass from here on",
    GROUPED: "experts are dequantized one by one from here on",
    RECOMPUTED: "activations are recomputed from here on",
    CHUNKED: "the loss is computed in chunks from here on",
    OFFLOADED: "activations are kept in the computer's memory from here on",
}


def failure(error: BaseException) -> EngineError:
    """The sentence for memory that does not do even for the smallest step."""
    code, what = out_of_memory.owner(error)
    return EngineError(
        code,
        f"{what} is out of memory even at micro-batch 1",
        "shorten data.seq_len, lower lora.rank, or train fewer modules; the Memory page shows what each saves",
        is_input_error=False,
    )


def with_less_memory(parts: Any, work: Callable[[int], T], state: TrainState) -> Generator[Event, None, T]:
    """`work(micro_batch)`, tried again one step down the ladder while memory is out; the change is kept.

    `work` must leave no trace when it fails.

    Raises:
        EngineError: not even one row fits.
    """
    while True:
        try:
            with relieved(state):
                return work(state.micro_batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            words = _step_down(parts, state)
            if words is None:
                raise failure(error) from error
        release()
        yield Noticed("warning", "memory.micro_batch", f"Out of memory: {words}; going on")


def release() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    allocator.give_back_freed_memory()
    out_of_memory.release()


def relieved(state: TrainState) -> contextlib.AbstractContextManager[Any]:
    """Where activations are offloaded, backward's saved tensors wait in the computer's memory."""
    if OFFLOADED in state.reliefs:
        return recomputing.on_host()
    return contextlib.nullcontext()


def restore(parts: Any, state: TrainState) -> None:
    """Take again the steps that a checkpoint says were taken."""
    for relief in list(state.reliefs):
        _apply(parts, relief)


def _step_down(parts: Any, state: TrainState) -> str | None:
    """The next step of the ladder, taken; None at its end."""
    for relief in (KEPT, GROUPED):
        if relief not in state.reliefs and _apply(parts, relief):
            state.reliefs.append(relief)
            return RELIEFS[relief]
    if state.micro_batch > 1:
        before, state.micro_batch = state.micro_batch, state.micro_batch // 2
        return f"micro-batch {before} -> {state.micro_batch}, the effective batch stays the same"
    for relief, words in RELIEFS.items():
        if relief not in state.reliefs and _apply(parts, relief):
            state.reliefs.append(relief)
            return words
    return None


def _apply(parts: Any, relief: str) -> bool:
    """False where it would change nothing."""
    if relief == KEPT:
        return bool(parts.fast.release_kept(parts.model))
    if relief == GROUPED:
        return bool(parts.fast.separate_experts(parts.model))
    if relief == RECOMPUTED:
        model = parts.model.get_base_model()
        if recomputing.is_everywhere(model) or not model.supports_gradient_checkpointing:
            return False
        recomputing.enable(model)
        return True
    if relief == CHUNKED:
        if parts.loss_kind == "chunked" or not parts.is_chunkable:
            return False
        parts.loss_kind = "chunked"
        return True
    return bool(parts.plan.kind == "cuda")
