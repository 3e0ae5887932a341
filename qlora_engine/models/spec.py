"""Facts about a model without its weights: from `config.json` and the headers of its safetensors files. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qlora_engine.errors import EngineError
from qlora_engine.models import families
from qlora_engine.models.blueprints import Blueprint, whole_number
from qlora_engine.models.files import (
    StoredTensor,
    headers_of_folder,
    read_chat_template,
    read_config,
    read_header,
    read_licence,
    weight_files,
)

__all__ = [
    "LinearFact",
    "ModelFacts",
    "TensorFact",
    "architecture_of",
    "brings_code",
    "facts_from_config",
    "facts_from_dict",
    "facts_of_folder",
    "facts_to_dict",
    "headers_of_folder",
    "read_chat_template",
    "read_config",
    "read_header",
    "text_config",
    "weight_files",
]


@dataclass(frozen=True)
class LinearFact:
    """One kind of linear layer. `path` has `*` for the block's number; `count` is how many the model has."""

    name: str
    path: str
    in_features: int
    out_features: int
    count: int
    has_bias: bool
    is_quantized: bool

    @property
    def weights(self) -> int:
        """Weight elements of all of them."""
        return self.in_features * self.out_features * self.count


@dataclass(frozen=True)
class TensorFact:
    """One kind of tensor left in 16 bits. `role`: embedding, head, norm, bias, router, expert, other."""

    name: str
    shape: tuple[int, ...]
    count: int
    role: str

    @property
    def elements(self) -> int:
        """Elements of all of them."""
        size = self.count
        for side in self.shape:
            size *= side
        return size


@dataclass(frozen=True)
class ModelFacts:
    """What memory and speed depend on. `stored_*` and `path` are None for models known by name only."""

    name: str
    origin: str
    path: str | None
    revision: str | None
    architecture: str
    model_type: str
    config: Mapping[str, Any]
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int | None
    is_tied: bool
    is_gated_mlp: bool
    experts: int | None
    experts_per_token: int | None
    sliding_window: int | None
    linears: tuple[LinearFact, ...]
    unquantized: tuple[TensorFact, ...]
    stored_bytes: int | None = None
    stored_dtype: str | None = None
    licence: str | None = None
    chat_template: str | None = None

    @property
    def quantized_parameters(self) -> int:
        """Weights stored in 4 bits: every linear layer but the head."""
        return sum(linear.weights for linear in self.linears if linear.is_quantized)

    @property
    def unquantized_parameters(self) -> int:
        return sum(tensor.elements for tensor in self.unquantized)

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        return self.quantized_parameters + self.unquantized_parameters


def facts_from_config(config: Mapping[str, Any], name: str, *, origin: str = "known") -> ModelFacts:
    """Facts from a parsed `config.json` alone.

    Raises:
        EngineError: an unknown or refused architecture, missing numbers, or weights that are already quantized.
    """
    _refuse_quantized(config)
    text = text_config(config)
    blueprint = families.blueprint_of(text)
    sizes = families.sizes_of(text)
    experts = whole_number(text, "num_local_experts", "num_experts")
    return ModelFacts(
        name=name,
        origin=origin,
        path=None,
        revision=None,
        architecture=architecture_of(config),
        model_type=str(text["model_type"]),
        config=config,
        hidden_size=sizes.hidden,
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.inner,
        vocab_size=sizes.vocab,
        max_positions=whole_number(text, "max_position_embeddings"),
        is_tied=sizes.is_tied,
        is_gated_mlp=blueprint.is_gated_mlp,
        experts=experts,
        experts_per_token=whole_number(text, "num_experts_per_tok") if experts else None,
        sliding_window=_sliding_window(text),
        linears=tuple(_linear_facts(blueprint)),
        unquantized=tuple(_tensor_facts(blueprint)),
    )


def facts_of_folder(path: Path, name: str | None = None, *, origin: str = "folder") -> ModelFacts:
    """Facts of a model folder; its safetensors headers are read and checked, no weight is.

    Raises:
        EngineError: missing, incomplete, damaged, pickled or unknown: one sentence with the next step.
    """
    config = read_config(path)
    tensors = headers_of_folder(path)
    if brings_code(config):
        from qlora_engine.models import custom_facts

        facts = custom_facts.facts_from_headers(config, tensors, name or path.name, origin=origin)
    else:
        facts = facts_from_config(_with_tie(config, tensors), name or path.name, origin=origin)
        _require_all_stored(facts, tensors)
    return replace(
        facts,
        path=str(path),
        config=config,
        stored_bytes=sum(t.nbytes for t in tensors.values()),
        stored_dtype=_main_dtype(tensors),
        licence=read_licence(path),
        chat_template=read_chat_template(path),
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model (Gemma 3 and others nest it)."""
    nested = config.get("text_config")
    if not isinstance(nested, Mapping):
        return config
    outer = config.get("tie_word_embeddings")
    return {**nested, "tie_word_embeddings": outer} if isinstance(outer, bool) else nested


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that the config names, else its model type."""
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    return str(text_config(config).get("model_type", "unknown"))


def brings_code(config: Mapping[str, Any]) -> bool:
    """True for a model that only Python files of its own can build (`auto_map`, and a type unknown here)."""
    kind = str(text_config(config).get("model_type", ""))
    return bool(config.get("auto_map")) and not families.is_known(kind)


def facts_to_dict(facts: ModelFacts) -> dict[str, Any]:
    """JSON-ready form, with the derived totals."""
    totals = {
        "parameters": facts.parameters,
        "quantized_parameters": facts.quantized_parameters,
        "unquantized_parameters": facts.unquantized_parameters,
    }
    return {**asdict(facts), **totals}


def facts_from_dict(plain: Mapping[str, Any]) -> ModelFacts:
    """The facts of `facts_to_dict`."""
    values = {k: v for k, v in plain.items() if k in ModelFacts.__dataclass_fields__}
    values["linears"] = tuple(LinearFact(**entry) for entry in plain["linears"])
    values["unquantized"] = tuple(
        TensorFact(**{**entry, "shape": tuple(entry["shape"])}) for entry in plain["unquantized"]
    )
    return ModelFacts(**values)


def _sliding_window(text: Mapping[str, Any]) -> int | None:
    """Qwen configs name a window that they do not use."""
    is_used = text.get("use_sliding_window", not str(text.get("model_type")).startswith("qwen"))
    return whole_number(text, "sliding_window") if is_used else None


def _with_tie(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Mapping[str, Any]:
    """A nested config often leaves out whether the head is tied; then the files tell."""
    if not isinstance(config.get("text_config"), Mapping) or not tensors:
        return config
    return {**config, "tie_word_embeddings": not any(name.endswith("lm_head.weight") for name in tensors)}


def _refuse_quantized(config: Mapping[str, Any]) -> None:
    found = config.get("quantization_config")
    if isinstance(found, Mapping):
        method = found.get("quant_method") or (
            "bitsandbytes" if "load_in_4bit" in found else "an unknown method"
        )
        raise EngineError(
            "model.already_quantized",
            f"the weights of this model are already quantized ({method}), and QLoRA starts from 16-bit weights",
            "choose the model's 16-bit version",
        )


def _require_all_stored(facts: ModelFacts, tensors: Mapping[str, StoredTensor]) -> None:
    stored = sum(math.prod(tensor.shape) for tensor in tensors.values())
    if stored < facts.parameters:
        raise EngineError(
            "model.incomplete",
            f"the files hold {stored:,} parameters, and config.json describes a model of {facts.parameters:,}",
            "download the model again, or check that config.json belongs to these files",
        )


def _linear_facts(blueprint: Blueprint) -> Iterator[LinearFact]:
    for linear in blueprint.linears:
        yield LinearFact(
            name=linear.path.rsplit(".", 1)[-1],
            path=f"{blueprint.block_prefix}.*.{linear.path}",
            in_features=linear.in_features,
            out_features=linear.out_features,
            count=blueprint.layers,
            has_bias=linear.has_bias,
            is_quantized=True,
        )


def _tensor_facts(blueprint: Blueprint) -> Iterator[TensorFact]:
    for tensor in blueprint.outer:
        yield TensorFact(tensor.path, tensor.shape, 1, tensor.role)
    for tensor in blueprint.block_tensors:
        yield TensorFact(
            f"{blueprint.block_prefix}.*.{tensor.path}", tensor.shape, blueprint.layers, tensor.role
        )
    for linear in blueprint.linears:
        if linear.has_bias:
            path = f"{blueprint.block_prefix}.*.{linear.path}.bias"
            yield TensorFact(path, (linear.out_features,), blueprint.layers, "bias")


def _main_dtype(tensors: Mapping[str, StoredTensor]) -> str | None:
    totals: dict[str, int] = {}
    for tensor in tensors.values():
        totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.nbytes
    return max(totals, key=lambda dtype: totals[dtype]) if totals else None
