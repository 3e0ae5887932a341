"""What a GGUF file says of a model's shape and positions, under the names of llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

from qlora_engine.errors import EngineError
from qlora_engine.models import gguf_rope

WINDOWED = ("gemma2", "gemma3", "phi3")  # llama.cpp reads the sliding window of these


def fields_of(
    architecture: str, config: Mapping[str, Any], name: str, file_type: gguf.LlamaFileType
) -> dict[str, Any]:
    """Metadata under the names of llama.cpp; `{arch}.` stands for the architecture."""
    heads, window = config["num_attention_heads"], config.get("sliding_window")
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = _rope_of(config)
    fields: dict[str, Any] = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": int(file_type),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "{arch}.context_length": context_length(architecture, config),
        "{arch}.embedding_length": config["hidden_size"],
        "{arch}.block_count": config["num_hidden_layers"],
        "{arch}.feed_forward_length": config["intermediate_size"],
        "{arch}.attention.head_count": heads,
        "{arch}.attention.head_count_kv": config["num_key_value_heads"],
        "{arch}.attention.key_length": head_dim,
        "{arch}.attention.value_length": head_dim,
        "{arch}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "{arch}.rope.freq_base": float(rope.get("rope_theta", 10_000.0)),
        "{arch}.rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        "{arch}.vocab_size": config["vocab_size"],
    }
    if rope.get("rope_type") == "linear":
        fields |= {"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": float(rope["factor"])}
    if architecture in WINDOWED:
        fields["{arch}.attention.sliding_window"] = window or 0
    if architecture == "gemma2":
        fields["{arch}.attn_logit_softcapping"] = float(config["attn_logit_softcapping"])
        fields["{arch}.final_logit_softcapping"] = float(config["final_logit_softcapping"])
    return fields


def context_length(architecture: str, config: Mapping[str, Any]) -> int:
    """The positions the file allows: where llama.cpp knows no sliding window, none beyond the window."""
    positions, window = int(config["max_position_embeddings"]), config.get("sliding_window")
    if architecture in WINDOWED or not window or config.get("use_sliding_window") is False:
        return positions
    return min(positions, int(window))


def _rope_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the layers that see everything, where a family keeps two.

    Raises:
        EngineError: a scaling that is lost on the way.
    """
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    kind = rope.get("rope_type", "default")
    llama3 = {key: rope.get(key) for key in gguf_rope.LLAMA3}
    if kind not in ("default", "linear", "llama3") or (kind == "llama3" and llama3 != gguf_rope.LLAMA3):
        raise EngineError(
            "export.gguf_positions",
            f"this model scales its positions in a way ({kind}) that is not written to GGUF here",
            "export it as a merged model",
        )
    return rope


def rope_tensor(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The divisors of Llama 3's positions, which are a tensor of the file; nothing for others."""
    rope = _rope_of(config)
    if rope.get("rope_type") != "llama3":
        return {}
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    divisors = gguf_rope.llama3_divisors(head_dim, rope["rope_theta"], rope["factor"])
    return {"rope_freqs.weight": np.asarray(divisors, dtype=np.float32)}
