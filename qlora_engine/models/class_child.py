"""Builds the class of a `config.json` on the meta device and describes it. Imports the ML stack; also a process of its own:
configuration in on stdin as JSON, description out on stdout.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from qlora_engine import child, parsing
from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.models import reach, structure
from qlora_engine.models.quiet import quiet

NOT_FOR_THE_CLASS = frozenset(
    {"model_type", "architectures", "quantization_config", "torch_dtype", "dtype", "auto_map", "transformers_version"}
)  # fmt: skip
ENCODERS = "it reads or writes something else than text: only decoders of text are trained here"


def class_config(text: Mapping[str, Any]) -> Any:
    """The config object of transformers for the text part of a `config.json`.

    Raises:
        EngineError: transformers does not know the type, or refuses the values.
    """
    kind = str(text.get("model_type", ""))
    if not kind:
        raise EngineError(
            "model.config", "config.json names no model_type", "check that it is a transformers model"
        )
    values = {key: value for key, value in text.items() if key not in NOT_FOR_THE_CLASS}
    values = PreTrainedConfig._decode_special_floats(values)  # infinity, as its files spell it
    try:
        with quiet():
            config_class = type(AutoConfig.for_model(kind))
    except ValueError as error:
        raise EngineError(
            "model.unknown_architecture",
            f"the architecture {kind!r} is not known to the installed transformers",
            did_you_mean(kind, causal_types()),
        ) from error
    except Exception:  # noqa: BLE001 - defaults that its own class refuses: the given values may be better
        config_class = AutoConfig.for_model
    try:
        with quiet():
            made = (
                config_class(**values)
                if config_class is not AutoConfig.for_model
                else config_class(kind, **values)
            )
    except Exception as error:
        raise EngineError(
            "model.config",
            f"transformers refuses the configuration of this {kind} model: {first_line(error)}",
            "check that config.json belongs to this model",
        ) from error
    return made


def build(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The causal language model of that config, on the meta device: shapes without memory.

    Raises:
        EngineError: there is no such class, or it cannot be built.
    """
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise EngineError(
            "model.unsupported",
            f"models of type {config.model_type!r} cannot be trained here: transformers has no causal language model of it",
            "choose a decoder of text",
        )
    try:
        with quiet(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:
        raise EngineError(
            "model.config",
            f"transformers does not build this {config.model_type} model: {first_line(error)}",
            "check that config.json belongs to this model",
        ) from error


def describe(text: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and parts of the class that `text`, the text part of a `config.json`, stands for, JSON-ready.

    Raises:
        EngineError: see `class_config` and `build`.
    """
    config = class_config(text)
    model = build(config)
    sizes = _sizes(config, model)
    return {
        "class": type(model).__name__,
        "is_own": type(model).__module__.startswith("transformers."),
        **sizes,
        "blocks": structure.blocks_path(model, int(sizes["layers"])),
        **structure.describe(model, reach.unreached(config)),
    }


def causal_types() -> tuple[str, ...]:
    """Every model type that has a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _sizes(config: Any, model: Any) -> dict[str, Any]:
    """The numbers that most families share, whatever theirs are called; 0 where the type has no such thing."""
    text = config.get_text_config(decoder=True)
    embedding = model.get_input_embeddings()
    hidden = _number(text, "hidden_size", "n_embd", "d_model", "dim")
    heads = _number(text, "num_attention_heads", "n_head", "n_heads")
    return {
        "hidden_size": hidden,
        "layers": _number(text, "num_hidden_layers", "n_layer", "num_layers", "decoder_layers"),
        "heads": heads,
        "kv_heads": _number(text, "num_key_value_heads", "num_kv_heads") or heads,
        "head_dim": _number(text, "head_dim", "v_head_dim") or (hidden // heads if heads else 0),
        "intermediate_size": _number(text, "intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "d_ff"),
        "vocab_size": int(embedding.weight.shape[0]),
        "max_positions": _number(text, "max_position_embeddings", "n_positions", "max_seq_len") or None,
        "is_tied": bool(model.get_output_embeddings() is not None and model.get_output_embeddings().weight is embedding.weight),
        "experts": max(structure.expert_counts(model), default=0) or None,
        "experts_per_token": _number(text, "num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token") or None,
        "sliding_window": _number(text, "sliding_window") or None,
    }  # fmt: skip


def _number(config: Any, *names: str) -> int:
    """The first of `names` that is a positive number; of a list the largest."""
    for name in names:
        value = _value(config, name)
        if isinstance(value, list | tuple) and value and all(isinstance(one, int) for one in value):
            value = max(value)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _value(config: Any, name: str) -> Any:
    """The attribute; where each layer has its own, those of all layers."""
    try:
        return getattr(config, name, None)
    except (AttributeError, RuntimeError):  # transformers refuses to name one number for layers that differ
        layers = getattr(config, "per_layer_config", None)
        values = layers.values() if isinstance(layers, Mapping) else layers
        return [getattr(layer, name) for layer in values] if values else None


def main() -> int:
    """Answer one question; a user's error is an answer too."""
    child.end_with_parent()
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stray prints cannot spoil the answer
    try:
        found: dict[str, Any] = describe(parsing.from_json(sys.stdin.read()))
    except EngineError as error:
        found = {"error": [error.code, error.message, error.hint]}
    json.dump(found, answer)
    answer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
