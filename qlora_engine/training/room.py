"""What a run takes of its machine at once: rows of a micro-batch, and blocks that keep their activations. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from qlora_engine import data
from qlora_engine.config import TrainingConfig, TrainingSettings
from qlora_engine.device import DevicePlan
from qlora_engine.events import Event, Noticed
from qlora_engine.memory import context
from qlora_engine.memory import estimate as memory_estimate


def choose(
    config: TrainingConfig, facts: Any, prepared: data.PreparedData, plan: DevicePlan
) -> tuple[TrainingConfig, int, Any]:
    """The settings with the blocks that recompute, rows computed at once (asked for, or the largest that fits) and the memory
    estimate for them: of the longest row that there is, and of the tokens that are trained."""
    known, seq_len = context.context_of(), prepared.longest_row_tokens or prepared.seq_len
    size: dict[str, Any] = {
        "seq_len": seq_len, "device": plan.kind, "usable_bytes": usable_bytes(plan), "context": known,
    }  # fmt: skip
    wanted = memory_estimate.rows_at_once(facts, config, **size)
    config = memory_estimate.with_blocks_chosen(facts, config, micro_batch=wanted, **size)
    estimate = memory_estimate.estimate(
        facts,
        config,
        seq_len=seq_len,
        micro_batch=wanted,
        device=plan.kind,
        context=known,
        trained=prepared.most_trained_tokens,
    )
    return config, wanted, estimate


def said(asked: TrainingSettings, found: TrainingSettings) -> Iterator[Event]:
    """Which blocks recompute, where that was left to the run."""
    if not asked.gradient_checkpointing or asked.checkpoint_every:
        return
    every = found.checkpoint_every
    words = "Every block recomputes" if every == 1 else f"One block of {every} recomputes"
    where = ", and its input waits in the computer's memory" if found.offload_inputs else ""
    yield Noticed("info", "training.recomputing", f"{words} its activations{where}: as few as fit")


def usable_bytes(plan: DevicePlan) -> int:
    """What a run may take: the GPU's free memory, or the computer's available memory."""
    if plan.kind == "cuda":
        return int(torch.cuda.mem_get_info(plan.index)[0])
    import psutil

    return int(psutil.virtual_memory().available)
