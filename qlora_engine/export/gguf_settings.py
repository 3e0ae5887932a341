"""Compares a base's settings with what a GGUF file says of them. Imports numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qlora_engine.errors import EngineError

# Settings that say nothing about what is computed, or that the file says in another way (checked by its tensors).
SILENT = frozenset({
    "architectures", "dtype", "torch_dtype", "transformers_version", "model_type", "_name_or_path", "_model_name_or_path", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "initializer_range", "tie_word_embeddings",
    "pretraining_tp", "max_position_embeddings", "original_max_position_embeddings", "attention_dropout", "embd_pdrop",
    "resid_pdrop", "quantization_config", "use_bidirectional_attention", "rope_scaling", "rope_theta",
})  # fmt: skip
SLIDING = frozenset({"sliding_window", "layer_types", "use_sliding_window", "max_window_layers"})


def require_same_settings(architecture: str, config: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse a model whose file, read back, would be another one.

    Raises:
        EngineError: with the setting and both values.
    """
    ignored = SILENT if architecture.startswith("gemma") else SILENT | SLIDING
    config, found = _with_head_dim(config), _with_head_dim(found)
    for key in sorted({*config, *found} - ignored):
        if not _is_same(config.get(key), found.get(key)):
            raise EngineError(
                "export.gguf_setting",
                f"a GGUF file cannot say this model's {key}: {config.get(key)} would become {found.get(key)}",
                "export it as a merged model",
            )
    scale = config.get("query_pre_attn_scalar")
    if scale is not None and scale != config["head_dim"]:
        raise EngineError(
            "export.gguf_setting",
            f"llama.cpp would scale this model's attention by {config['head_dim']} instead of {scale}",
            "export it as a merged model",
        )


def _with_head_dim(config: Mapping[str, Any]) -> dict[str, Any]:
    """Families that do not name it compute it."""
    return {
        **config,
        "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
    }


def _is_same(one: Any, other: Any) -> bool:
    """Equal but for the rounding of fp32; unset and off are the same."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_is_same(one.get(key), other.get(key)) for key in {*one, *other})
    if isinstance(one, float) and isinstance(other, int | float):
        return bool(np.isclose(one, other, rtol=1e-6, atol=0))
    return (one or None) == (other or None)
