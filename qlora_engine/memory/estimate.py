"""The memory of a run in closed form: four ways to train side by side, where they fit, and what would save.

Pure arithmetic, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.memory import advise, experts, gpus
from qlora_engine.memory.context import UNMEASURED, Context
from qlora_engine.memory.variants import (
    GIB,
    MIB,
    PART_NAMES,
    RESERVE,
    RESERVE_SHARE,
    ROLES,
    SIDES,
    Advice,
    Estimate,
    Fit,
    Variant,
    optimizer_bytes,
    shape_of,
    side_of,
    variant,
    variant_of,
    with_totals,
)
from qlora_engine.models.spec import ModelFacts

__all__ = [
    "GIB", "MIB", "PART_NAMES", "RESERVE", "RESERVE_SHARE", "ROLES", "SIDES", "Advice", "Estimate", "Fit", "Variant", "estimate",
    "kept_weights_bytes", "optimizer_bytes", "recommend_micro_batch", "rehearsed", "rows_at_once", "shape_of", "side_of", "variant_of", "with_blocks_chosen",
]  # fmt: skip

GROUPED_TYPES = ("auto", "bf16")
"""Of a GPU's compute types, those in which torch multiplies groups."""
CPU_ROWS = 4
"""Rows at once that are worth having on a CPU: more make no step faster."""


def estimate(
    facts: ModelFacts,
    config: TrainingConfig,
    *,
    seq_len: int,
    micro_batch: int,
    device: str = "cuda",
    upcast_unquantized: bool = False,
    wants_advice: bool = True,
    context: Context = UNMEASURED,
    trained: int = 0,
) -> Estimate:
    """The memory of training `facts` with `config` on rows of `seq_len` tokens, `micro_batch` at a time. `trained`: at most so
    many tokens of a row count in the loss; 0 where the data were not read, and all may.

    On `cuda` what is not quantized is 16-bit and the optimizer pages; on `cpu` everything is fp32 and nothing pages.
    `context` is what the GPU takes besides (memory.context).
    """
    facts = experts.as_configured(facts, config.quantization)
    sides = {
        name: variant(facts, config, seq_len, micro_batch, device, upcast_unquantized, name, context, trained)
        for name in SIDES
    }
    double, single = sides["double_quant"], sides["single_quant"]
    size: dict[str, Any] = {
        "seq_len": seq_len, "micro_batch": micro_batch, "device": device, "upcast_unquantized": upcast_unquantized, "context": context,
    }  # fmt: skip
    now = variant_of(facts, config, **size) if wants_advice else None
    return Estimate(
        model=facts.name,
        parameters=facts.parameters,
        quantized_parameters=facts.quantized_parameters,
        settings=_settings(config, seq_len, micro_batch, device, upcast_unquantized, context, trained),
        double_quant=double,
        single_quant=single,
        lora_16bit=sides["lora_16bit"].peak_bytes,
        full_16bit=sides["full_16bit"].peak_bytes,
        fits=_fits(double, single),
        advice=advise.changes(facts, config, now=now, **size) if now is not None else (),
        sides=sides,
        **_besides(facts, config, device, seq_len * micro_batch),
    )  # fmt: skip


def _besides(facts: ModelFacts, config: TrainingConfig, device: str, tokens: int) -> dict[str, int]:
    return {
        "kept_weights_bytes": kept_weights_bytes(facts, config, device),
        "grouped_experts_bytes": grouped_experts_bytes(facts, config, device, tokens),
    }


def kept_weights_bytes(facts: ModelFacts, config: TrainingConfig, device: str) -> int:
    """What a run on the CPU keeps of its 4-bit linear layers in fp32, all of them or none; experts are never kept."""
    if device != "cpu":
        return 0
    size = sum(4 * t.in_features * t.out_features * t.count for t in facts.linears if t.is_quantized)
    return size if size <= config.training.kept_weights_gib * GIB else 0


def grouped_experts_bytes(facts: ModelFacts, config: TrainingConfig, device: str, tokens: int) -> int:
    """What it takes to compute all experts of a block together (training.group_experts), where the settings ask for it."""
    has_product = device != "cuda" or config.quantization.compute_dtype in GROUPED_TYPES
    if not has_product or not experts.are_grouped(config.training.group_experts, device):
        return 0
    return experts.grouped_bytes(facts, tokens, 2 if device == "cuda" else 4)


def rehearsed(
    base: Estimate, moving: Mapping[str, Mapping[str, int]], operations: Mapping[str, str]
) -> Estimate:
    """`base` with the moving parts of a rehearsed step: activations, step_temporary and gradients by side."""
    sides = dict(base.sides)
    for side, parts in moving.items():
        before = base.sides[side]
        found = with_totals(
            {**before.parts, **parts},
            str(base.settings["device"]),
            before.numbers,
            before.context,
            source="rehearsal",
            peak_operation=operations[side],
        )
        sides[side] = replace(found, moments=before.moments)
    double, single = sides["double_quant"], sides["single_quant"]
    return replace(base, sides=sides, double_quant=double, single_quant=single, fits=_fits(double, single))


def recommend_micro_batch(
    facts: ModelFacts, config: TrainingConfig, *, seq_len: int, usable_bytes: int, device: str = "cuda",
    context: Context = UNMEASURED,
) -> int:  # fmt: skip
    """The largest divisor of the effective batch, at most 16 rows, whose likely device memory fits; at least 1."""
    for rows in range(min(16, config.training.effective_batch), 1, -1):
        if config.training.effective_batch % rows:
            continue
        found = variant(facts, config, seq_len, rows, device, False, side_of(config), context)
        if found.device_likely <= usable_bytes:
            return rows
    return 1


def rows_at_once(
    facts: ModelFacts, config: TrainingConfig, *, seq_len: int, device: str, usable_bytes: int | None,
    context: Context = UNMEASURED,
) -> int:  # fmt: skip
    """The micro-batch of a run: as set, else the largest that fits and is worth having; 1 on a GPU whose free memory is
    unknown. Always divides the effective batch."""
    chosen, effective = config.training.micro_batch, config.training.effective_batch
    if chosen is not None:
        return chosen
    if device == "cpu" and usable_bytes is None:
        return math.gcd(CPU_ROWS, effective)
    if usable_bytes is None:
        return 1
    rows = recommend_micro_batch(
        facts, config, seq_len=seq_len, usable_bytes=usable_bytes, device=device, context=context
    )
    return math.gcd(min(rows, CPU_ROWS), effective) if device == "cpu" else rows


def with_blocks_chosen(
    facts: ModelFacts, config: TrainingConfig, *, seq_len: int, micro_batch: int, device: str, usable_bytes: int,
    context: Context = UNMEASURED,
) -> TrainingConfig:  # fmt: skip
    """`config` with the blocks that recompute, where it leaves them open: as few as fit; where all do and that is not enough,
    their inputs wait in the computer's memory."""
    if config.training.checkpoint_every or not config.training.gradient_checkpointing:
        return config

    def likely(every: int) -> int:
        changed = with_value(config, "training.checkpoint_every", every)
        found = variant_of(
            facts, changed, seq_len=seq_len, micro_batch=micro_batch, device=device, context=context
        )
        return found.device_likely

    every = advise.highest(1, max(1, facts.layers), lambda n: likely(n) <= usable_bytes)
    if every is None and device == "cuda":
        config = with_value(config, "training.offload_inputs", True)
    return with_value(config, "training.checkpoint_every", every or 1)


def _fits(double: Variant, single: Variant) -> tuple[Fit, ...]:
    return tuple(
        Fit(g.name, g.usable_bytes, double.device_likely <= g.usable_bytes, single.device_likely <= g.usable_bytes)
        for g in gpus.known_gpus()
    )  # fmt: skip


def _settings(
    config: TrainingConfig,
    seq_len: int,
    micro_batch: int,
    device: str,
    upcast: bool,
    context: Context,
    trained: int,
) -> dict[str, Any]:
    targets = config.lora.targets
    read = f"the longest row of the data; of one row at most {trained:,} tokens are trained"
    return {
        "seq_len": seq_len,
        "seq_len_source": read if trained else "every row as long as asked, all of it trained",
        "micro_batch": micro_batch,
        "rank": config.lora.rank,
        "targets": targets if isinstance(targets, str) else list(targets),
        "optimizer": config.training.optimizer,
        "checkpointing": config.training.gradient_checkpointing,
        "checkpoint_every": config.training.checkpoint_every or 1,
        "offload_inputs": config.training.offload_inputs,
        "loss": config.training.loss,
        "adapter_dtype": config.lora.dtype,
        "upcast_unquantized": upcast,
        "device": device,
        "device_context": context.source if device == "cuda" else "",
    }
