"""The memory of a run in closed form: parts, totals, comparison, fit and advice. Pure arithmetic, no torch.

Three totals, never mixed: `peak_bytes` (what the allocator holds, with managed optimizer state counted as resident),
and `device_bytes` low / likely / high (with reserve, context and workspace: what `nvidia-smi` shows).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qlora_engine.config import TrainingConfig
from qlora_engine.memory import activations, calibration, experts, gpus, static
from qlora_engine.memory.context import UNMEASURED, Context
from qlora_engine.memory.moments import peaks
from qlora_engine.memory.optimizer_state import StateBytes, state_bytes
from qlora_engine.memory.passes import Shape
from qlora_engine.memory.static import adapter_tensors, constants_bytes
from qlora_engine.models.spec import ModelFacts

GIB = 1024**3
MIB = 1024**2
RESERVE = calibration.reserve()
RESERVE_SHARE = (RESERVE.low, RESERVE.likely, RESERVE.high)
"""Reserved but not allocated, as a share of what comes and goes in a step; what stays does not fragment. The only numbers
here that are no arithmetic; `RESERVE.source` says where they are from."""
CPU_ROWS = 4
"""Rows at once that are worth having on a CPU: more make no step faster."""
SIDES = ("double_quant", "single_quant", "lora_16bit", "full_16bit")
ROLES = {
    "embedding": "embeddings",
    "norm": "norms",
    "bias": "biases",
    "router": "routers",
    "expert": "experts",
}
PART_NAMES = (
    "quantized_weights",
    "quantization_constants",
    "unquantized_weights",
    "adapters",
    "gradients",
    "optimizer_resident",
    "optimizer_pageable",
    "activations",
    "step_temporary",
    "allocator_rounding",
    "device_context",
)


@dataclass(frozen=True)
class Variant:
    """One quantization: bytes by part, and the totals."""

    parts: Mapping[str, int]
    peak_bytes: int
    device_low: int
    device_likely: int
    device_high: int
    source: str = "closed-form"
    peak_operation: str | None = None
    numbers: Mapping[str, Mapping[str, int | str]] = field(default_factory=dict)
    """For each part, what its formula was computed from."""
    reserved_bytes: int = 0
    """What the allocator is likely to have reserved at the peak."""
    moments: Mapping[str, int] = field(default_factory=dict)
    """Other peaks: loading, evaluating, generating, saving, resuming, host_loading."""
    context: Context = UNMEASURED

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "peak_bytes": self.peak_bytes,
            "device_bytes": {"low": self.device_low, "likely": self.device_likely, "high": self.device_high},
            "peak_operation": self.peak_operation,
            "parts": dict(self.parts),
            "reserved_bytes": self.reserved_bytes,
            "moments": dict(self.moments),
        }


@dataclass(frozen=True)
class Fit:
    gpu: str
    usable_bytes: int
    double_quant: bool
    single_quant: bool


@dataclass(frozen=True)
class Advice:
    """A change that saves memory: `path` and `value` can be put into the config by a button."""

    change: str
    saves_bytes: int
    path: str
    value: Any
    device_likely: int = 0
    """What the device will show after it."""


@dataclass(frozen=True)
class Estimate:
    """Everything the Memory page shows. `to_json` is what `qlora estimate --json` prints."""

    model: str
    parameters: int
    quantized_parameters: int
    settings: Mapping[str, Any]
    double_quant: Variant
    single_quant: Variant
    lora_16bit: int
    full_16bit: int
    fits: tuple[Fit, ...]
    advice: tuple[Advice, ...]
    sides: Mapping[str, Variant]
    """The four ways to train, by the names of `SIDES`."""

    def chosen(self, double_quant: bool) -> Variant:
        return self.double_quant if double_quant else self.single_quant

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "parameters": self.parameters,
            "quantized_parameters": self.quantized_parameters,
            "settings": dict(self.settings),
            "double_quant": self.double_quant.to_json(),
            "single_quant": self.single_quant.to_json(),
            "compare": {"lora_16bit": self.lora_16bit, "full_16bit": self.full_16bit},
            "fits": [vars(fit) for fit in self.fits],
            "advice": [{"change": a.change, "saves_bytes": a.saves_bytes} for a in self.advice],
        }


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
) -> Estimate:
    """The memory of training `facts` with `config` on rows of `seq_len` tokens, `micro_batch` at a time.

    On `cuda` what is not quantized is 16-bit and the optimizer pages; on `cpu` everything is fp32 and nothing pages.
    `context` is what the GPU takes besides (memory.context).
    """
    from qlora_engine.memory import advise

    facts = experts.as_configured(facts, config.quantization)
    sides = {
        name: _variant(facts, config, seq_len, micro_batch, device, upcast_unquantized, name, context)
        for name in SIDES
    }
    double, single = sides["double_quant"], sides["single_quant"]
    chosen = double if config.quantization.double_quant else single
    return Estimate(
        model=facts.name,
        parameters=facts.parameters,
        quantized_parameters=facts.quantized_parameters,
        settings=_settings(config, seq_len, micro_batch, device, upcast_unquantized, context),
        double_quant=double,
        single_quant=single,
        lora_16bit=sides["lora_16bit"].peak_bytes,
        full_16bit=sides["full_16bit"].peak_bytes,
        fits=_fits(double, single),
        advice=advise.changes(facts, config, now=chosen, seq_len=seq_len, micro_batch=micro_batch, device=device, upcast_unquantized=upcast_unquantized, context=context) if wants_advice else (),
        sides=sides,
    )  # fmt: skip


def rehearsed(
    base: Estimate, moving: Mapping[str, Mapping[str, int]], operations: Mapping[str, str]
) -> Estimate:
    """`base` with the moving parts of a rehearsed step: activations, step_temporary and gradients by side."""
    sides = dict(base.sides)
    for side, parts in moving.items():
        before = base.sides[side]
        found = _with_totals(
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


def variant_of(
    facts: ModelFacts,
    config: TrainingConfig,
    *,
    seq_len: int,
    micro_batch: int,
    device: str = "cuda",
    upcast_unquantized: bool = False,
    context: Context = UNMEASURED,
) -> Variant:
    """The side that `config` asks for, alone: what searches and advice compare."""
    return _variant(facts, config, seq_len, micro_batch, device, upcast_unquantized, side_of(config), context)


def recommend_micro_batch(
    facts: ModelFacts, config: TrainingConfig, *, seq_len: int, usable_bytes: int, device: str = "cuda",
    context: Context = UNMEASURED,
) -> int:  # fmt: skip
    """The largest divisor of the effective batch, at most 16 rows, whose likely device memory fits; at least 1."""
    for rows in range(min(16, config.training.effective_batch), 1, -1):
        if config.training.effective_batch % rows:
            continue
        variant = _variant(facts, config, seq_len, rows, device, False, side_of(config), context)
        if variant.device_likely <= usable_bytes:
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


def side_of(config: TrainingConfig) -> str:
    """The side that `config` asks for."""
    return "double_quant" if config.quantization.double_quant else "single_quant"


def optimizer_bytes(facts: ModelFacts, config: TrainingConfig, device: str) -> StateBytes:
    element = 4 if config.lora.dtype == "fp32" else 2
    return state_bytes(
        config.training.optimizer,
        adapter_tensors(facts, config),
        can_page=device == "cuda",
        element_bytes=element,
    )


def shape_of(
    config: TrainingConfig, seq_len: int, micro_batch: int, device: str, upcast: bool, side: str
) -> Shape:
    """The micro-batch in the types that a side computes in."""
    element = 2 if device == "cuda" else 4
    return Shape(
        micro_batch=micro_batch,
        seq_len=seq_len,
        element_bytes=element,
        stream_bytes=4 if upcast else element,
        adapter_bytes=4 if config.lora.dtype == "fp32" else 2,
        is_cuda=device == "cuda",
        is_double_quant=side == "double_quant",
        is_packed=config.data.packing,
    )


def _variant(
    facts: ModelFacts, config: TrainingConfig, seq_len: int, micro_batch: int, device: str, upcast: bool, side: str,
    context: Context,
) -> Variant:  # fmt: skip
    facts = experts.as_configured(facts, config.quantization)
    shape = shape_of(config, seq_len, micro_batch, device, upcast, side)
    stream = shape.stream_bytes
    found = activations.moving(facts, config, shape)
    parts, numbers = _static_parts(facts, config, device, stream, side)
    if side in ("double_quant", "single_quant") and config.quantization.expert_placement == "host":
        _leave_on_host(parts, numbers, experts.moved_to_host(facts, is_double_quant=shape.is_double_quant))
    parts["allocator_rounding"] = (
        static.rounding_bytes(facts, config, stream, side=side) if shape.is_cuda else 0
    )
    parts["activations"], parts["step_temporary"] = found.activations, found.step_temporary
    if side != "full_16bit":
        parts["gradients"] = found.gradients
    numbers["activations"] = dict(activations.numbers(facts, config, shape))
    whole = _with_totals(parts, device, numbers, context, peak_operation=found.operation)
    moments = peaks(facts, config, shape, whole.parts, config.training.sample_tokens)
    return replace(whole, moments=moments)


def _leave_on_host(
    parts: dict[str, int], numbers: dict[str, dict[str, int | str]], moved: tuple[int, int]
) -> None:
    """Take what is in the computer's memory out of the parts, and say how much that is."""
    parts["quantized_weights"] -= moved[0]
    parts["quantization_constants"] -= moved[1]
    numbers["quantized_weights"]["bytes of experts on the host"] = sum(moved)


def _with_totals(
    parts: dict[str, int],
    device: str,
    numbers: Mapping[str, Mapping[str, int | str]],
    context: Context,
    source: str = "closed-form",
    peak_operation: str | None = None,
) -> Variant:
    parts["device_context"] = context.likely_bytes if device == "cuda" else 0
    parts = {name: parts[name] for name in PART_NAMES}
    peak = sum(parts.values()) - parts["device_context"]
    one = Variant(parts, peak, peak, peak, peak, source, peak_operation, numbers, reserved_bytes=peak)
    if device != "cuda":
        return one
    moving = parts["activations"] + parts["step_temporary"] + parts["gradients"]
    low, likely, high = (peak + int(share * moving) for share in RESERVE_SHARE)
    return replace(
        one,
        device_low=low + context.low_bytes,
        device_likely=likely + context.likely_bytes,
        device_high=high + context.high_bytes,
        reserved_bytes=likely,
        context=context,
    )


def _fits(double: Variant, single: Variant) -> tuple[Fit, ...]:
    return tuple(
        Fit(g.name, g.usable_bytes, double.device_likely <= g.usable_bytes, single.device_likely <= g.usable_bytes)
        for g in gpus.known_gpus()
    )  # fmt: skip


def _static_parts(
    facts: ModelFacts, config: TrainingConfig, device: str, element: int, side: str
) -> tuple[dict[str, int], dict[str, dict[str, int | str]]]:
    if side == "full_16bit":
        return _full_parts(facts)
    is_quantized = side != "lora_16bit"
    unquantized = facts.unquantized_parameters + (0 if is_quantized else facts.quantized_parameters)
    trained = sum(elements * count for elements, count in adapter_tensors(facts, config))
    adapter_bytes = 4 if config.lora.dtype == "fp32" else 2
    optimizer = optimizer_bytes(facts, config, device)
    parts = {
        "quantized_weights": static.quantized_bytes(facts) if is_quantized else 0,
        "quantization_constants": constants_bytes(facts, is_double_quant=side == "double_quant") if is_quantized else 0,
        "unquantized_weights": unquantized * element + static.buffer_bytes(facts),
        "adapters": trained * adapter_bytes,
        "gradients": trained * adapter_bytes,
        "optimizer_resident": optimizer.resident,
        "optimizer_pageable": optimizer.pageable,
    }  # fmt: skip
    numbers: dict[str, dict[str, int | str]] = {
        "quantized_weights": {"quantized parameters": facts.quantized_parameters if is_quantized else 0},
        "unquantized_weights": {
            **_by_role(facts, is_quantized),
            "parameters": unquantized,
            "bytes each": element,
        },
        "adapters": {"trained parameters": trained, "bytes each": adapter_bytes, "rank": config.lora.rank},
    }
    return parts, numbers


def _by_role(facts: ModelFacts, is_quantized: bool) -> dict[str, int]:
    """How many parameters of each kind stay unquantized, the most first."""
    found = {} if is_quantized else {"linear layers": facts.quantized_parameters}
    for tensor in facts.sixteen_bit:
        role = ROLES.get(tensor.role, tensor.role)
        found[role] = found.get(role, 0) + tensor.elements
    return dict(sorted(found.items(), key=lambda one: one[1], reverse=True))


def _full_parts(facts: ModelFacts) -> tuple[dict[str, int], dict[str, dict[str, int | str]]]:
    """Everything is trained: 16-bit weights and gradients, two fp32 moments (arXiv 2305.14314, section 1)."""
    parts = dict.fromkeys(PART_NAMES, 0)
    parts.update(
        unquantized_weights=2 * facts.parameters,
        gradients=2 * facts.parameters,
        optimizer_resident=8 * facts.parameters,
    )
    return parts, {"unquantized_weights": {"parameters": facts.parameters, "bytes each": 2}}


def _settings(
    config: TrainingConfig, seq_len: int, micro_batch: int, device: str, upcast: bool, context: Context
) -> dict[str, Any]:
    targets = config.lora.targets
    return {
        "seq_len": seq_len,
        "micro_batch": micro_batch,
        "rank": config.lora.rank,
        "targets": targets if isinstance(targets, str) else list(targets),
        "optimizer": config.training.optimizer,
        "checkpointing": config.training.gradient_checkpointing,
        "loss": config.training.loss,
        "adapter_dtype": config.lora.dtype,
        "upcast_unquantized": upcast,
        "device": device,
        "device_context": context.source if device == "cuda" else "",
    }
