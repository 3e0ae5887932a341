"""Checks what was really built, on the loaded tensors, and reports it. Imports the ML stack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit

from qlora_engine.config import QuantizationSettings
from qlora_engine.device import DevicePlan
from qlora_engine.errors import EngineError
from qlora_engine.models import spec
from qlora_engine.models.experts.stack import Stacked4bit, stacks_of
from qlora_engine.models.fingerprint import base_sha256
from qlora_engine.models.four_bit import BLOCK, constants_bytes


@dataclass(frozen=True)
class LoadReport:
    """What was built, read off the loaded tensors, never off the config (CORRECTNESS 1).

    `quantized_parameters`, `packed_bytes` and `constants_bytes` count linear layers and experts; `host_bytes` is the part
    of them that is kept in the computer's memory. `converted` says from what format the weights were brought into 4 bits,
    where the files did not hold them in 16.
    """

    quantized_modules: int
    quantized_parameters: int
    packed_bytes: int
    constants_bytes: int
    unquantized_bytes: int
    quant_type: str
    is_double_quant: bool
    block_size: int
    compute_dtype: str
    device: str
    end_token_ids: tuple[int, ...]
    base_sha256: str
    kept_unquantized: tuple[str, ...]
    expert_stacks: int = 0
    expert_parameters: int = 0
    host_bytes: int = 0
    converted: str = ""


def inspect_loaded(
    model: Any,
    ends: tuple[int, ...],
    path: Path,
    facts: spec.ModelFacts,
    quantization: QuantizationSettings,
    plan: DevicePlan,
) -> LoadReport:
    """Read off what was built, and refuse anything but what was asked.

    Raises:
        EngineError: a layer is not 4-bit, or has another type, block size, nesting, compute type or device.
    """
    linears = {name: m for name, m in model.named_modules() if isinstance(m, Linear4bit)}
    stacks = stacks_of(model)
    _check_all(linears, stacks, quantization, plan)
    _refuse_leftovers(model, facts, quantization, plan)
    in_linears = sum(m.in_features * m.out_features for m in linears.values())
    in_stacks = sum(stack.weights for stack in stacks.values())
    _require_whole(facts, quantization, in_linears, in_stacks)
    others = _not_in_4_bits(model, linears, stacks)
    state = next(iter(linears.values())).weight.quant_state
    return LoadReport(
        quantized_modules=len(linears),
        quantized_parameters=in_linears + in_stacks,
        packed_bytes=sum(m.weight.nbytes for m in linears.values()) + sum(s.nbytes for s in stacks.values()),
        constants_bytes=_constants(linears, stacks),
        unquantized_bytes=sum(p.nbytes for p in others.values()),
        quant_type=state.quant_type,
        is_double_quant=bool(state.nested),
        block_size=int(state.blocksize),
        compute_dtype=plan.torch_dtype_name,
        device=plan.name,
        end_token_ids=ends,
        base_sha256=base_sha256(path),
        kept_unquantized=tuple(sorted({_pattern(name) for name in others})),
        expert_stacks=len(stacks),
        expert_parameters=in_stacks,
        host_bytes=_on_host(stacks),
    )


def _constants(linears: Mapping[str, Any], stacks: Mapping[str, Stacked4bit]) -> int:
    """Bytes of all quantization constants."""
    in_linears = sum(constants_bytes(m.weight.quant_state) for m in linears.values())
    return in_linears + sum(stack.constants_nbytes for stack in stacks.values())


def _on_host(stacks: Mapping[str, Stacked4bit]) -> int:
    """Bytes of experts that wait in the computer's memory."""
    return sum(sum(t.nbytes for t in s.stored.tensors()) for s in stacks.values() if s.place is not None)


def _not_in_4_bits(
    model: Any, linears: Mapping[str, Any], stacks: Mapping[str, Stacked4bit]
) -> dict[str, Any]:
    weights = {id(m.weight) for m in linears.values()} | {id(stack) for stack in stacks.values()}
    return {name: p for name, p in model.named_parameters() if id(p) not in weights}


def _check_all(
    linears: Mapping[str, Any],
    stacks: Mapping[str, Stacked4bit],
    wanted: QuantizationSettings,
    plan: DevicePlan,
) -> None:
    for name, module in linears.items():
        _check_module(name, module, wanted, plan)
    for name, stack in stacks.items():
        _check_stack(name, stack, wanted, plan)


def _require_whole(
    facts: spec.ModelFacts, quantization: QuantizationSettings, in_linears: int, in_stacks: int
) -> None:
    """As many parameters in 4 bits as the architecture has."""
    linears = sum(t.weights for t in facts.linears if t.is_quantized)
    experts = sum(one.weights for one in facts.stacked) if quantization.experts == "4bit" else 0
    _require_all_quantized("linear layers", in_linears, linears)
    _require_all_quantized("experts", in_stacks, experts)


def _require_all_quantized(what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise EngineError(
            "model.not_quantized",
            f"{found:,} parameters of {what} were quantized, and this architecture should have {wanted:,}",
            "report this model as a bug", is_input_error=False,
        )  # fmt: skip


def _check_module(name: str, module: Any, wanted: QuantizationSettings, plan: DevicePlan) -> None:
    state = module.weight.quant_state
    if state is None:
        raise EngineError(
            "model.not_quantized", f"{name} was not quantized", "report this as a bug", is_input_error=False
        )
    _require_as_asked(
        name, wanted, plan, quant_type=state.quant_type, is_nested=bool(state.nested), block=int(state.blocksize),
        dtype=module.compute_dtype, device=module.weight.device,
    )  # fmt: skip


def _check_stack(name: str, stack: Stacked4bit, wanted: QuantizationSettings, plan: DevicePlan) -> None:
    device = stack.device if stack.place is None else stack.device_of_sums
    _require_as_asked(
        name, wanted, plan, quant_type=stack.form.quant_type, is_nested=stack.form.codes[1] is not None, block=BLOCK,
        dtype=stack.form.dtype, device=device,
    )  # fmt: skip


def _require_as_asked(
    name: str, wanted: QuantizationSettings, plan: DevicePlan, *, quant_type: str, is_nested: bool, block: int,
    dtype: torch.dtype, device: torch.device,
) -> None:  # fmt: skip
    built = {
        "type": quant_type,
        "double quantization": is_nested,
        "block size": block,
        "compute type": str(dtype).removeprefix("torch."),
        "device": str(device) if device.type == "cuda" else device.type,
    }
    asked = {
        "type": wanted.quant_type,
        "double quantization": wanted.double_quant,
        "block size": BLOCK,
        "compute type": plan.torch_dtype_name,
        "device": plan.name,
    }
    for key, value in asked.items():
        if built[key] != value:
            raise EngineError(
                "model.not_as_asked", f"{name} was built with {key} {built[key]!r} instead of {value!r}",
                "report this as a bug", is_input_error=False,
            )  # fmt: skip


def _refuse_leftovers(
    model: Any, facts: spec.ModelFacts, wanted: QuantizationSettings, plan: DevicePlan
) -> None:
    """No linear layer may be left unquantized but the head and those that the facts say must stay so, nothing may be on
    another device but experts that are kept on the host, and embeddings and head must be in the compute type, not cast up
    (CORRECTNESS 8 and 11)."""
    head = model.get_output_embeddings()
    told = {t.name.removesuffix(".weight") for t in facts.unquantized}
    plain = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not isinstance(module, Linear4bit)
        and module is not head
        and _pattern(name) not in told
    ]
    away = [
        name
        for name, p in model.named_parameters()
        if p.device != torch.device(plan.name) and not (isinstance(p, Stacked4bit) and p.place is not None)
    ]
    ends = [module for module in (model.get_input_embeddings(), head) if module is not None]
    cast = [type(m).__name__ for m in ends if m.weight.dtype != plan.torch_dtype]
    for names, words in (
        (plain, "was not quantized"),
        (away, f"is not on {plan.name}"),
        (cast, f"is not in {plan.torch_dtype_name}"),
    ):
        if names:
            raise EngineError(
                "model.not_as_asked", f"{names[0]} {words} ({len(names)} such)",
                "report this model as a bug", is_input_error=False,
            )  # fmt: skip


def _pattern(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
