"""Facts about a model without its weights: from `config.json` and the headers of its safetensors files. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_engine.errors import EngineError
from qlora_engine.models import classes, custom_facts, families, packing
from qlora_engine.models.blueprints import Blueprint, whole_number
from qlora_engine.models.files import (
    StoredTensor,
    read_chat_template,
    read_config,
    read_header,
    read_licence,
    stored_headers,
    weight_files,
)
from qlora_engine.models.packing import headers_of_folder
from qlora_engine.models.parts import (
    EXPERTS_IN_4_BITS,
    BufferFact,
    LinearFact,
    ModelFacts,
    StackedFact,
    TensorFact,
    facts_from_dict,
    facts_to_dict,
)
from qlora_engine.models.sized import facts_of_sizes

__all__ = [
    "BufferFact",
    "LinearFact",
    "ModelFacts",
    "StackedFact",
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


def facts_from_config(
    config: Mapping[str, Any], name: str, *, origin: str = "known", described: Mapping[str, Any] | None = None
) -> ModelFacts:
    """Facts from a parsed `config.json` alone: counted here where the family is in the table, else told by the class, or
    `described` by it before (`classes.description`).

    Raises:
        EngineError: transformers does not know the architecture, missing numbers, or weights quantized in a way not read here.
    """
    packed = packing.packing_of(config, name)
    text = text_config(config)
    if families.is_counted(text):
        facts = _counted(config, name, origin)
    elif described is not None:
        facts = classes.facts_of_description(described, config, text, name, origin=origin)
    else:
        facts = classes.facts_from_class(config, text, name, origin=origin)
    return facts if packed is None else replace(facts, packing=packed.title)


def _counted(config: Mapping[str, Any], name: str, origin: str) -> ModelFacts:
    text = text_config(config)
    blueprint = families.blueprint_of(text)
    found = facts_of_sizes(
        families.sizes_of(text), text, config, name=name, origin=origin, architecture=architecture_of(config),
        linears=tuple(_linear_facts(blueprint)), is_gated_mlp=blueprint.is_gated_mlp,
        experts=whole_number(text, "num_local_experts", "num_experts"),
    )  # fmt: skip
    return replace(
        found,
        sliding_window=_sliding_window(text),
        unquantized=tuple(_tensor_facts(blueprint)),
        stacked=tuple(_stacked_facts(blueprint)),
        blocks=blueprint.block_prefix,
    )


def facts_from_headers(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], name: str, *, origin: str
) -> ModelFacts:
    """Facts of a model that brings code of its own, from the names and shapes in its files.

    Raises:
        EngineError: the config lacks the usual numbers.
    """
    text, architecture = text_config(config), architecture_of(config)
    return custom_facts.facts_from_headers(config, text, architecture, tensors, name, origin=origin)


def facts_of_folder(path: Path, name: str | None = None, *, origin: str = "folder") -> ModelFacts:
    """Facts of a model folder; its safetensors headers are read and checked, no weight is.

    Raises:
        EngineError: missing, incomplete, damaged, pickled or unknown: one sentence with the next step.
    """
    config = read_config(path)
    packing.packing_of(config, name or path.name)
    stored = stored_headers(path)
    tensors = packing.plain_view(stored, path)
    if brings_code(config):
        facts = facts_from_headers(config, tensors, name or path.name, origin=origin)
    else:
        facts = facts_from_config(_with_tie(config, tensors), name or path.name, origin=origin)
        _require_all_stored(facts, tensors)
        facts = packing.as_stored(facts, tensors)
    return replace(
        facts,
        path=str(path),
        config=config,
        stored_bytes=sum(t.nbytes for t in stored.values()),
        stored_dtype=_main_dtype(stored),
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
    return bool(config.get("auto_map")) and not classes.is_known(kind)


def _sliding_window(text: Mapping[str, Any]) -> int | None:
    """Qwen configs name a window that they do not use."""
    is_used = text.get("use_sliding_window", not str(text.get("model_type")).startswith("qwen"))
    return whole_number(text, "sliding_window") if is_used else None


def _with_tie(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Mapping[str, Any]:
    """A nested config often leaves out whether the head is tied; then the files tell."""
    if not isinstance(config.get("text_config"), Mapping) or not tensors:
        return config
    return {**config, "tie_word_embeddings": not any(name.endswith("lm_head.weight") for name in tensors)}


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
        if tensor.role != "expert":
            yield TensorFact(
                f"{blueprint.block_prefix}.*.{tensor.path}", tensor.shape, blueprint.layers, tensor.role
            )
    for linear in blueprint.linears:
        if linear.has_bias:
            path = f"{blueprint.block_prefix}.*.{linear.path}.bias"
            yield TensorFact(path, (linear.out_features,), blueprint.layers, "bias")


def _stacked_facts(blueprint: Blueprint) -> Iterator[StackedFact]:
    for tensor in blueprint.block_tensors:
        if tensor.role == "expert":
            experts, out_features, in_features = tensor.shape
            yield StackedFact(
                name=tensor.path.rsplit(".", 1)[-1],
                path=f"{blueprint.block_prefix}.*.{tensor.path}",
                shape=(experts, out_features, in_features),
                count=blueprint.layers,
                is_transposed=False,
                is_quantized=EXPERTS_IN_4_BITS,
            )


def _main_dtype(tensors: Mapping[str, StoredTensor]) -> str | None:
    totals: dict[str, int] = {}
    for tensor in tensors.values():
        totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.nbytes
    return max(totals, key=lambda dtype: totals[dtype]) if totals else None
