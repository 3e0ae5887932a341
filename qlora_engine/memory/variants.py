"""One way to train, in closed form: bytes by part, and the totals. Pure arithmetic, no torch.

Three totals, never mixed: `peak_bytes` (what the allocator holds, with managed optimizer state counted as resident),
and `device_bytes` low / likely / high (with reserve, context and workspace: what `nvidia-smi` shows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qlora_engine.config import TrainingConfig
from qlora_engine.memory import activations, calibration, experts, static
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
    kept_weights_bytes: int = 0
    """On the CPU, beside every peak here: weights dequantized once and kept, where that much is free; the first thing that a
    run gives up when memory is out."""
    grouped_experts_bytes: int = 0
    """As above, of a mixture: all experts of a block dequantized together."""

    @property
    def besides_bytes(self) -> int:
        """What a run takes beyond its peak where that much is free."""
        return self.kept_weights_bytes + self.grouped_experts_bytes

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
            "kept_weights_bytes": self.kept_weights_bytes,
            "grouped_experts_bytes": self.grouped_experts_bytes,
            "compare": {"lora_16bit": self.lora_16bit, "full_16bit": self.full_16bit},
            "fits": [vars(fit) for fit in self.fits],
            "advice": [{"change": a.change, "saves_bytes": a.saves_bytes} for a in self.advice],
        }


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
    return variant(facts, config, seq_len, micro_batch, device, upcast_unquantized, side_of(config), context)


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
    config: TrainingConfig,
    seq_len: int,
    micro_batch: int,
    device: str,
    upcast: bool,
    side: str,
    trained: int = 0,
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
        trained=trained,
    )


def variant(
    facts: ModelFacts, config: TrainingConfig, seq_len: int, micro_batch: int, device: str, upcast: bool, side: str,
    context: Context, trained: int = 0,
) -> Variant:  # fmt: skip
    facts = experts.as_configured(facts, config.quantization)
    shape = shape_of(config, seq_len, micro_batch, device, upcast, side, trained)
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
    whole = with_totals(parts, device, numbers, context, peak_operation=found.operation)
    longest = max(
        config.training.sample_tokens, config.training.end_tokens if config.training.end_rows else 0
    )
    moments = peaks(facts, config, shape, whole.parts, longest)
    return replace(whole, moments=moments)


def _leave_on_host(
    parts: dict[str, int], numbers: dict[str, dict[str, int | str]], moved: tuple[int, int]
) -> None:
    """Take what is in the computer's memory out of the parts, and say how much that is."""
    parts["quantized_weights"] -= moved[0]
    parts["quantization_constants"] -= moved[1]
    numbers["quantized_weights"]["bytes of experts on the host"] = sum(moved)


def with_totals(
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


def _static_parts(
    facts: ModelFacts, config: TrainingConfig, device: str, element: int, side: str
) -> tuple[dict[str, int], dict[str, dict[str, int | str]]]:
    if side == "full_16bit":
        return _full_parts(facts, 2 if device == "cuda" else 4)
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


def _full_parts(facts: ModelFacts, element: int) -> tuple[dict[str, int], dict[str, dict[str, int | str]]]:
    """Everything is trained: weights and gradients of `element` bytes, 16-bit on a GPU (arXiv 2305.14314, section 1) and fp32
    where the CPU computes, and two fp32 moments."""
    parts = dict.fromkeys(PART_NAMES, 0)
    parts.update(
        unquantized_weights=element * facts.parameters,
        gradients=element * facts.parameters,
        optimizer_resident=8 * facts.parameters,
    )
    return parts, {"unquantized_weights": {"parameters": facts.parameters, "bytes each": element}}
