"""Out of memory: go on with a smaller micro-batch instead of dying (CORRECTNESS 27). Imports torch.

The effective batch stays what the person asked for: the same rows, in more pieces.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from typing import TypeVar

import torch

from qlora_engine.events import Event, Noticed
from qlora_engine.training.checkpoint import TrainState

T = TypeVar("T")


def with_smaller_batches(work: Callable[[int], T], state: TrainState) -> Generator[Event, None, T]:
    """`work(micro_batch)`, tried again with half the rows while the GPU is out of memory; the change is kept.

    `work` must leave no trace when it fails.

    Raises:
        torch.OutOfMemoryError: not even one row fits.
    """
    while True:
        try:
            return work(state.micro_batch)
        except torch.OutOfMemoryError:
            if state.micro_batch == 1:
                raise
        smaller = state.micro_batch // 2
        yield Noticed(
            "warning",
            "memory.micro_batch",
            f"Out of memory: micro-batch {state.micro_batch} -> {smaller}, the effective batch stays the same; going on",
        )
        state.micro_batch = smaller
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
