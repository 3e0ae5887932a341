"""The memory bars as a person reads them: four ways to train side by side, each part with its formula, its numbers, its
source and what changes it. Pure arithmetic, no torch: the window calls it at every move of a slider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qlora_engine.config import TrainingConfig
from qlora_engine.memory import estimate as closed_form
from qlora_engine.memory.context import UNMEASURED, Context
from qlora_engine.memory.estimate import SIDES, Estimate, Variant
from qlora_engine.memory.gpus import Gpu
from qlora_engine.models.spec import ModelFacts

SIDE_TITLES = {
    "double_quant": "4-bit, double quantization",
    "single_quant": "4-bit, without double quantization",
    "lora_16bit": "16-bit LoRA",
    "full_16bit": "full 16-bit fine-tuning",
}
REHEARSED_SIDES = ("double_quant", "single_quant")
MOVING = ("activations", "step_temporary", "gradients")
"""The parts that a rehearsal counts; all others are known from the model alone."""


@dataclass(frozen=True)
class PartText:
    """What is known of a part in words: `formula` in symbols, where it is from, and the options that change it."""

    title: str
    formula: str
    source: str
    changed_by: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """One segment of a bar. `numbers` are (name, value) of the formula; `changed_by` are dotted option paths."""

    name: str
    title: str
    bytes_: int
    formula: str
    numbers: tuple[tuple[str, object], ...]
    source: str
    changed_by: tuple[str, ...]


@dataclass(frozen=True)
class Bar:
    """One way to train. `parts` are in drawing order, from the bottom; their sum is `device_likely` up to the reserve."""

    name: str
    title: str
    parts: tuple[Part, ...]
    variant: Variant

    @property
    def device_likely(self) -> int:
        return self.variant.device_likely

    def part(self, name: str) -> Part:
        """The part of that name."""
        return next(part for part in self.parts if part.name == name)


@dataclass(frozen=True)
class Comparison:
    """Everything the Memory page draws. `bars`: double_quant, single_quant, lora_16bit, full_16bit."""

    estimate: Estimate
    bars: tuple[Bar, ...]
    gpu: Gpu | None

    def bar(self, name: str) -> Bar:
        """The bar of that name."""
        return next(bar for bar in self.bars if bar.name == name)


TEXTS: Mapping[str, PartText] = {
    "quantized_weights": PartText(
        "4-bit weights",
        "quantized parameters / 2",
        "NF4 packs two weights into a byte (arXiv 2305.14314, section 3)",
        ("model.name",),
    ),
    "quantization_constants": PartText(
        "Quantization constants",
        "4 bytes per 64 weights; double: 1 byte per 64 and 4 bytes per 16,384, with the code tables",
        "bitsandbytes functional.py, quantize_4bit; arXiv 2305.14314, section 3",
        ("quantization.double_quant",),
    ),
    "unquantized_weights": PartText(
        "Unquantized weights",
        "(embeddings + head + norms + biases + routers) x bytes of their type",
        "linear layers and experts are quantized; the head, and what a kernel or a router reads, stay in 16 bits",
        ("model.name", "quantization.compute_dtype", "quantization.experts"),
    ),
    "adapters": PartText(
        "Adapters",
        "sum over adapted layers of rank x (in + out) x bytes of the adapter type",
        "LoRA: A is (rank, in), B is (out, rank) (arXiv 2106.09685)",
        ("lora.rank", "lora.targets", "lora.experts", "lora.dtype", "lora.dora"),
    ),
    "gradients": PartText(
        "Gradients",
        "one number per trained parameter that has its gradient at the peak",
        "autograd keeps them until the optimizer's step; the base is frozen and has none",
        ("lora.rank", "lora.targets", "lora.dtype", "training.effective_batch"),
    ),
    "optimizer_resident": PartText(
        "Optimizer, resident",
        "32-bit: 4 bytes per moment; 8-bit: 1 byte per moment and 4 bytes per 256; 32-bit below 4,096 elements",
        "bitsandbytes optim/optimizer.py: states under 100,000 elements are never paged",
        ("training.optimizer", "lora.rank", "lora.targets"),
    ),
    "optimizer_pageable": PartText(
        "Optimizer, pageable",
        "the moments of every tensor with at least 100,000 elements, in managed memory",
        "bitsandbytes optim/optimizer.py, get_state_buffer; the driver may move it to the CPU",
        ("training.optimizer", "lora.rank", "lora.targets"),
    ),
    "activations": PartText(
        "Activations",
        "what autograd keeps at the peak, tokens x bytes per token and layer",
        "counted on transformers' blocks and PEFT's LoRA layers, checked by the rehearsal",
        (
            "training.gradient_checkpointing",
            "training.checkpoint_every",
            "training.offload_inputs",
            "data.seq_len",
            "training.micro_batch",
            "lora.targets",
            "lora.dtype",
        ),
    ),
    "step_temporary": PartText(
        "Largest temporary",
        "the most that one operation needs besides: logits of a chunk, or a weight dequantized to 16 bits",
        "bitsandbytes autograd/_functions.py, MatMul4Bit; training/loss.py",
        ("training.loss", "data.seq_len", "training.micro_batch", "quantization.double_quant"),
    ),
    "allocator_rounding": PartText(
        "Allocator rounding",
        "tensors are rounded up to 512 bytes; what else the allocator reserves is shown apart",
        "torch, c10/cuda/CUDACachingAllocator",
        (),
    ),
    "device_context": PartText(
        "Device context",
        "CUDA context, kernels and cuBLAS workspace",
        "an empty process, asked of NVML, once per GPU and driver",
        ("model.device",),
    ),
}


def compare(
    facts: ModelFacts,
    config: TrainingConfig,
    *,
    seq_len: int,
    micro_batch: int,
    gpu: Gpu | None = None,
    device: str = "cuda",
    upcast_unquantized: bool = False,
    context: Context = UNMEASURED,
) -> Comparison:
    """All four bars for training `facts` with `config` on rows of `seq_len` tokens, `micro_batch` at a time."""
    found = closed_form.estimate(
        facts,
        config,
        seq_len=seq_len,
        micro_batch=micro_batch,
        device=device,
        upcast_unquantized=upcast_unquantized,
        context=context,
    )
    return comparison_of(found, gpu)


def comparison_of(found: Estimate, gpu: Gpu | None = None) -> Comparison:
    """An estimate as bars."""
    return Comparison(found, tuple(_bar(name, found) for name in SIDES), gpu)


def with_rehearsal(found: Comparison, result: Mapping[str, Any]) -> Comparison:
    """`found` with what a rehearsal counted; `result` is the rehearsed estimate as JSON."""
    sides = {side: result[side] for side in REHEARSED_SIDES}
    moving = {side: {name: one["parts"][name] for name in MOVING} for side, one in sides.items()}
    operations = {side: str(one["peak_operation"]) for side, one in sides.items()}
    return comparison_of(closed_form.rehearsed(found.estimate, moving, operations), found.gpu)


def _bar(name: str, found: Estimate) -> Bar:
    variant = found.sides[name]
    parts = (_part(key, size, variant.numbers.get(key, {})) for key, size in variant.parts.items())
    named = tuple(
        replace(part, source=variant.context.source)
        if part.name == "device_context" and part.bytes_
        else part
        for part in parts
    )
    return Bar(name, SIDE_TITLES[name], named, variant)


def _part(name: str, size: int, numbers: Mapping[str, object]) -> Part:
    text = TEXTS[name]
    known = tuple(numbers.items())
    return Part(name, text.title, size, text.formula, known, text.source, text.changed_by)
