"""What to do about memory: a verdict in words, the cheapest changes that a button can apply, and the largest that fits.

Pure arithmetic, no torch: the window calls it directly. A change names dotted option paths and their new values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.memory import choosing
from qlora_engine.memory.context import UNMEASURED, Context
from qlora_engine.memory.variants import GIB, MIB, Advice, Estimate, Variant, variant_of
from qlora_engine.models.spec import ModelFacts

LONGEST = 1_048_576
MOST_ROWS = 4096
HIGHEST_RANK = 1024
COST_ORDER = (
    "quantization.double_quant", "training.loss", "training.micro_batch", "training.gradient_checkpointing",
    "training.checkpoint_every", "training.offload_inputs", "training.optimizer", "lora.dtype", "data.seq_len", "lora.rank", "lora.targets",
)  # fmt: skip
"""From what changes nothing in the result to what changes most."""


@dataclass(frozen=True)
class Verdict:
    """`kind`: fits, fits_low (only the low end fits), fits_paged (only when the optimizer is paged out), too_large."""

    kind: str
    text: str
    spare_bytes: int
    """What is left of the usable memory by the likely figure; negative: what is missing."""
    advice: tuple[Advice, ...] = ()
    """The changes that make it fit, alone, the cheapest first; all that save when none does."""

    @property
    def fits(self) -> bool:
        return self.kind == "fits"


@dataclass(frozen=True)
class Largest:
    """The largest that fits, one question at a time, all else as it is; None: not even the smallest."""

    seq_len: int | None
    micro_batch: int | None
    rank: int | None
    model: str | None


def changes(
    facts: ModelFacts,
    config: TrainingConfig,
    *,
    now: Variant,
    seq_len: int,
    micro_batch: int,
    device: str = "cuda",
    upcast_unquantized: bool = False,
    context: Context = UNMEASURED,
) -> tuple[Advice, ...]:
    """Every cheaper setting that saves memory, the most first. Paths and values can be put into the config."""
    found = []
    for change, path, value in _alternatives(config, seq_len, micro_batch):
        changed = with_value(config, path, value)
        variant = variant_of(
            facts,
            changed,
            seq_len=value if path == "data.seq_len" else seq_len,
            micro_batch=value if path == "training.micro_batch" else micro_batch,
            device=device,
            upcast_unquantized=upcast_unquantized,
            context=context,
        )
        saved = now.peak_bytes - variant.peak_bytes
        if saved > 0:
            found.append(Advice(change, saved, path, value, variant.device_likely))
    return tuple(sorted(found, key=lambda advice: -advice.saves_bytes))


def verdict(estimate: Estimate, usable_bytes: int, *, double_quant: bool = True) -> Verdict:
    """Whether it fits into `usable_bytes` of a GPU, in words, and what to change if not."""
    side = estimate.chosen(double_quant)
    spare = usable_bytes - side.device_likely
    pageable = side.parts["optimizer_pageable"]
    if spare >= 0:
        return Verdict("fits", f"fits with {size(spare)} to spare", spare)
    advice = remedies(estimate, usable_bytes)
    weights = (
        side.parts["quantized_weights"]
        + side.parts["quantization_constants"]
        + side.parts["unquantized_weights"]
    )
    if weights > usable_bytes:
        text = f"does not fit: the weights alone need {gib(weights)} of {size(usable_bytes)}; choose a smaller model"
        return Verdict("too_large", text, spare)
    if spare + pageable >= 0 and pageable:
        text = f"fits only while {size(-spare)} of optimizer state are paged out to the CPU, which slows each step"
        return Verdict("fits_paged", text + _cheapest(advice, usable_bytes), spare, advice)
    if side.device_low <= usable_bytes:
        text = f"fits only if the low end holds: {gib(side.device_low)} to {size(side.device_high)} of {size(usable_bytes)}"
        return Verdict("fits_low", text + _cheapest(advice, usable_bytes), spare, advice)
    text = f"does not fit: {gib(side.device_likely)} of {size(usable_bytes)}"
    return Verdict("too_large", text + _cheapest(advice, usable_bytes), spare, advice)


def _cheapest(advice: tuple[Advice, ...], usable_bytes: int) -> str:
    if not advice:
        return ""
    first = advice[0]
    if first.device_likely <= usable_bytes:
        return f"; the cheapest change: {first.change} saves {size(first.saves_bytes)}"
    return f"; no single change is enough: {first.change} saves most, {size(first.saves_bytes)}"


def plan(
    facts: ModelFacts,
    config: TrainingConfig,
    *,
    seq_len: int,
    micro_batch: int,
    usable_bytes: int,
    device: str = "cuda",
    context: Context = UNMEASURED,
) -> tuple[Advice, ...] | None:
    """The cheapest changes, one after the other, that together make it fit; None when nothing does. Each one's saving
    is what it saves after those before it."""
    taken: list[Advice] = []
    for _ in range(64):
        now = variant_of(
            facts, config, seq_len=seq_len, micro_batch=micro_batch, device=device, context=context
        )
        if now.device_likely <= usable_bytes:
            return tuple(taken)
        found = changes(
            facts, config, now=now, seq_len=seq_len, micro_batch=micro_batch, device=device, context=context
        )
        if not found:
            return None
        cheapest = min(found, key=lambda advice: COST_ORDER.index(advice.path))
        taken.append(cheapest)
        config = with_value(config, cheapest.path, cheapest.value)
        seq_len = cheapest.value if cheapest.path == "data.seq_len" else seq_len
        micro_batch = cheapest.value if cheapest.path == "training.micro_batch" else micro_batch
    return None


def remedies(estimate: Estimate, usable_bytes: int) -> tuple[Advice, ...]:
    """The changes that alone make it fit, the cheapest first; where none does, all, the most saving first."""
    enough = [advice for advice in estimate.advice if advice.device_likely <= usable_bytes]
    cheapest = sorted(enough, key=lambda advice: COST_ORDER.index(advice.path))
    return tuple(cheapest) or estimate.advice


def largest_that_fits(
    facts: ModelFacts,
    config: TrainingConfig,
    *,
    seq_len: int,
    micro_batch: int,
    usable_bytes: int,
    device: str = "cuda",
    context: Context = UNMEASURED,
) -> Largest:
    """Longest sequence, most rows, highest rank and largest known model whose likely device memory fits."""

    def fits(one: ModelFacts, changed: TrainingConfig, length: int, rows: int) -> bool:
        found = variant_of(one, changed, seq_len=length, micro_batch=rows, device=device, context=context)
        return found.device_likely <= usable_bytes

    limit = facts.max_positions or LONGEST
    return Largest(
        seq_len=highest(8, limit, lambda n: fits(facts, config, n, micro_batch)),
        micro_batch=highest(1, MOST_ROWS, lambda n: fits(facts, _rows(config, n), seq_len, n)),
        rank=highest(
            1, HIGHEST_RANK, lambda n: fits(facts, with_value(config, "lora.rank", n), seq_len, micro_batch)
        ),
        model=choosing.largest_model(
            config, choosing.Room("", device, usable_bytes, context), seq_len, micro_batch
        ),
    )


def size(size_bytes: int) -> str:
    """`3.1 GiB`, `412 MiB`."""
    return gib(size_bytes) + " GiB" if abs(size_bytes) >= GIB else f"{size_bytes / MIB:.0f} MiB"


def gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f}"


def _rows(config: TrainingConfig, rows: int) -> TrainingConfig:
    """With that micro-batch; the effective batch is at least as large."""
    return with_value(config, "training.effective_batch", max(rows, config.training.effective_batch))


def highest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The highest number in [low, high] that fits, by halving: memory never shrinks when a size grows."""
    if not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _alternatives(config: TrainingConfig, seq_len: int, micro_batch: int) -> Iterator[tuple[str, str, Any]]:
    """(words, option, value) of each cheaper setting."""
    training = config.training
    if micro_batch > 1:
        half = _divisor(training.effective_batch, micro_batch // 2)
        yield f"micro-batch {micro_batch} -> {half}", "training.micro_batch", half
    if not training.gradient_checkpointing:
        yield "turn gradient checkpointing on", "training.gradient_checkpointing", True
    elif training.checkpoint_every > 1:
        yield "recompute every block", "training.checkpoint_every", 1
    elif not training.offload_inputs:
        yield "keep block inputs in the computer's memory", "training.offload_inputs", True
    if not config.quantization.double_quant:
        yield "turn double quantization on", "quantization.double_quant", True
    if training.loss == "full":
        yield "compute the loss in chunks", "training.loss", "chunked"
    if not training.optimizer.endswith("8bit"):
        yield "use the paged 8-bit optimizer", "training.optimizer", "paged_adamw_8bit"
    if config.lora.dtype == "fp32":
        yield "train the adapters in bf16", "lora.dtype", "bf16"
    if seq_len >= 256:
        yield f"sequence length {seq_len} -> {seq_len // 2}", "data.seq_len", seq_len // 2
    if config.lora.rank >= 16:
        yield f"rank {config.lora.rank} -> {config.lora.rank // 2}", "lora.rank", config.lora.rank // 2
    if config.lora.targets == "all-linear":
        yield "adapt the attention layers only", "lora.targets", "attention"


def _divisor(whole: int, at_most: int) -> int:
    """The largest divisor of `whole` that is at most `at_most`."""
    return next(n for n in range(max(1, at_most), 0, -1) if whole % n == 0)
