"""Reads a built model apart: which layers become 4-bit and which may not, and why; experts, other tensors, buffers.

Works on any model that transformers builds, on the meta device too; loading asks the same questions. Imports torch.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator
from dataclasses import asdict
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qlora_engine.models import parts
from qlora_engine.models.parts import BufferFact, LinearFact, StackedFact, TensorFact, pattern

HEAD = "it computes the logits"
ROUTER = "it chooses the experts"
READ = "its block reads the weights themselves"
OWN_CLASS = "it is more than a linear layer"
FP32 = "the class keeps it in fp32"
TIED = "it shares its weights"
UNREACHED = "predicting text leads no gradient there"
_WEIGHT_READ = re.compile(r"self\.(\w+)\.weight\b(?!\.device)")
_EXPERT_COUNTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts",
)  # fmt: skip


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Every linear layer by its path, gpt2's transposed kind included."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}


def features_of(module: Any) -> tuple[int, int]:
    """(inputs, outputs)."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return int(module.in_features), int(module.out_features)


def kept_linears(model: Any) -> dict[str, str]:
    """The linear layers that stay in 16 bits, by their path, each with the reason."""
    found = {}
    modules = dict(model.named_modules())
    tied = _tied_modules(model)
    router_sizes = expert_counts(model)
    for name, module in linear_layers(model).items():
        parent, _, leaf = name.rpartition(".")
        reason = _reason(model, module, modules[parent], leaf, name, router_sizes)
        if reason is None and name in tied:
            reason = TIED
        if reason is not None:
            found[name] = reason
    return found


def quantizable_linears(model: Any) -> dict[str, nn.Module]:
    """The linear layers that become 4-bit."""
    kept = kept_linears(model)
    return {name: module for name, module in linear_layers(model).items() if name not in kept}


def stacked_weights(model: Any) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """(path of the module, module, name, parameter) of each parameter that holds the weights of a block's experts."""
    counts = expert_counts(model)
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and parameter.shape[0] in counts and min(parameter.shape[1:]) > 1:
                yield path, module, name, parameter


def expert_counts(model: Any) -> frozenset[int]:
    """How many experts a block of the model may have, by its configuration."""
    config = model.config.get_text_config(decoder=True)
    found = (getattr(config, name, None) for name in _EXPERT_COUNTS)
    return frozenset(n for n in found if isinstance(n, int) and n > 1)


def blocks_path(model: Any, layers: int) -> str:
    """Path of the list of decoder blocks: the one of that length with the most parameters."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module):
            size = sum(p.numel() for p in module.parameters())
            found.append((len(module) == layers, size, name))
    return max(found)[2] if found else ""


def describe(model: Any, unreached: Collection[str] = ()) -> dict[str, Any]:
    """The parts of the model, JSON-ready, as `parts.parts_from_dict` reads them. `unreached`: see `models.reach`."""
    kept = kept_linears(model)
    linears = {n: m for n, m in linear_layers(model).items() if n not in kept}
    stacked = list(stacked_weights(model))
    counted = {id(m.weight) for m in linears.values()} | {id(p) for _, _, _, p in stacked}
    return {
        "linears": [asdict(one) for one in _linear_facts(linears, unreached)],
        "stacked": [asdict(one) for one in _stacked_facts(stacked)],
        "unquantized": [asdict(one) for one in _tensor_facts(model, kept, counted)],
        "buffers": [asdict(one) for one in _buffer_facts(model)],
        "tied": _tied_groups(model),
    }


@cache
def read_as_tensors(owner: Hashable) -> frozenset[str]:
    """Names of layers whose weights `owner` uses past the layer: as arguments of kernels, in products, for their type."""
    found: set[str] = set()
    assert isinstance(owner, type)
    for one in owner.__mro__:
        if one is nn.Module or one is PreTrainedModel or one is object:
            continue
        try:
            found |= set(_WEIGHT_READ.findall(inspect.getsource(one)))
        except (OSError, TypeError):  # made at run time: no source to read
            continue
    return frozenset(found)


@cache
def acts_as_linear(kind: Hashable) -> bool:
    """Whether a class derived from `nn.Linear` computes what `nn.Linear` does, tried on a small one."""
    if kind in (nn.Linear, Conv1D):
        return True
    assert isinstance(kind, type)
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
            one, x = kind(8, 4), torch.randn(2, 3, 8)
            nn.init.normal_(one.weight)
            return bool(torch.allclose(one(x), nn.functional.linear(x, one.weight, one.bias), atol=1e-5))
    except Exception:  # noqa: BLE001 - whatever a class does with such features, it is no plain linear layer
        return False


def _reason(
    model: Any, module: nn.Module, owner: nn.Module, leaf: str, name: str, routers: frozenset[int]
) -> str | None:
    """What keeps the layer out of 4 bits, if anything does."""
    if module is model.get_output_embeddings():
        return HEAD
    if features_of(module)[1] in routers and _sends_to_experts(owner, leaf):
        return ROUTER
    if not acts_as_linear(_kind(module)):
        return OWN_CLASS
    if leaf in read_as_tensors(_kind(owner)):
        return READ
    if _is_kept_fp32(model, name):
        return FP32
    return None


def _kind(module: object) -> Hashable:
    return cast("Hashable", type(module))


def _sends_to_experts(owner: nn.Module, leaf: str) -> bool:
    """True for a layer of a module that routes: named so, or beside experts."""
    return leaf in ("gate", "router", "wg") or bool(re.search("Router|TopK|Gating", type(owner).__name__))


def _is_kept_fp32(model: Any, name: str) -> bool:
    kept = set()
    for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
        kept |= set(getattr(model, attribute, None) or ())
    return any(re.search(rf"(?:^|\.){re.escape(one)}(?:\.|$)", name) for one in kept)


def _tied_modules(model: Any) -> frozenset[str]:
    names: set[str] = set()
    for group in _tied_groups(model):
        names |= {one.removesuffix(".weight") for one in group}
    return frozenset(names)


def _tied_groups(model: Any) -> list[list[str]]:
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    return [sorted(names) for names in groups.values() if len(names) > 1]


def _linear_facts(linears: dict[str, nn.Module], unreached: Collection[str]) -> Iterator[LinearFact]:
    counts = Counter(
        (pattern(name), *features_of(module), module.bias is not None) for name, module in linears.items()
    )
    for (path, in_features, out_features, has_bias), count in counts.items():
        yield LinearFact(
            path.rsplit(".", 1)[-1], path, in_features, out_features, count, has_bias,
            is_quantized=True, is_reached=path not in unreached,
        )  # fmt: skip


def _stacked_facts(stacked: list[tuple[str, nn.Module, str, nn.Parameter]]) -> Iterator[StackedFact]:
    counts = Counter(
        (pattern(f"{path}.{name}"), tuple(p.shape), _is_transposed(module, name))
        for path, module, name, p in stacked
    )
    for (path, shape, is_transposed), count in counts.items():
        yield StackedFact(path.rsplit(".", 1)[-1], path, shape, count, is_transposed, parts.EXPERTS_IN_4_BITS)


def _is_transposed(module: nn.Module, name: str) -> bool:
    """(experts, in, out): the module says so, or else its shapes do: what goes into the experts is the hidden size."""
    said = getattr(module, "is_transposed", None)
    if said is not None:
        return bool(said)
    shapes = {n: p.shape for n, p in module.named_parameters(recurse=False) if p.ndim == 3}
    hidden = getattr(module, "hidden_size", None)
    into, out = shapes.get("gate_up_proj"), shapes.get("down_proj")
    if hidden is None or into is None or out is None:
        return False
    return bool(into[1] == hidden and out[2] == hidden and into[2] != hidden)


def _tensor_facts(model: Any, kept: dict[str, str], counted: set[int]) -> Iterator[TensorFact]:
    modules = dict(model.named_modules())
    strict = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    counts: Counter[tuple[str, tuple[int, ...], str, str, bool]] = Counter()
    for name, parameter in model.named_parameters():
        if id(parameter) in counted:
            continue
        owner, _, leaf = name.rpartition(".")
        why = kept.get(owner, "") if leaf == "weight" else ""
        is_fp32 = any(re.search(rf"(?:^|\.){re.escape(one)}(?:\.|$)", name) for one in strict)
        role = _role(model, modules[owner], name, parameter, why)
        counts[pattern(name), tuple(parameter.shape), role, why, is_fp32] += 1
    for (path, shape, role, why, is_fp32), count in counts.items():
        yield TensorFact(path, shape, count, role, why, is_fp32)


def _role(model: Any, module: nn.Module, name: str, parameter: nn.Parameter, why: str) -> str:
    leaf = name.rsplit(".", 1)[-1]
    is_norm = "norm" in type(module).__name__.lower()
    if module is model.get_output_embeddings():
        return "head"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if why == ROUTER:
        return "router"
    if is_norm or (parameter.ndim == 1 and "norm" in name):
        return "norm"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "kernel"
    if isinstance(module, nn.Linear | Conv1D) and leaf == "bias":
        return "bias"
    words = f"{type(module).__name__}.{name.rpartition('.')[0]}".lower()
    if "router" in words or "topk" in words or re.search(r"\.gate$", words):
        return "router"
    return "expert" if "expert" in words else "other"


def _buffer_facts(model: Any) -> Iterator[BufferFact]:
    stored = set(model.state_dict(keep_vars=True))
    counts: Counter[tuple[str, tuple[int, ...], str, int, bool]] = Counter()
    for name, buffer in model.named_buffers():
        dtype = str(buffer.dtype).removeprefix("torch.")
        counts[pattern(name), tuple(buffer.shape), dtype, buffer.element_size(), name in stored] += 1
    for (path, shape, dtype, itemsize, is_stored), count in counts.items():
        yield BufferFact(path, shape, count, dtype, itemsize, is_stored)
