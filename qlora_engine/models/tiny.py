"""Scales the default configuration of a model type down to a model of some thousand weights, without knowing the type:
by what its keys are called. Imports transformers.

Widths are multiples of 64 where they go into a layer, since that is the block that quantization works in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig

from qlora_engine.models.quiet import quiet

VOCABULARY = 320
HIDDEN = 64
MOST_LAYERS = 6
LAYER_COUNTS = re.compile(
    r"^(num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|n_recurrent_layers|n_(in|out)put_layers)$"
)
RULES: tuple[tuple[str, int], ...] = (
    (r"^num_key_value_heads$|^num_kv_heads$|swa_num_key_value_heads$", 2),
    (r"num_nextn_predict_layers|num_mtp|^num_kv_shared_layers$", 0),
    (r"^(num_attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads|swa_num_attention_heads|num_ngram_heads)$", 4),
    (r"^(mamba_n_heads|n_mamba_heads)$", 8),
    (r"linear_num_key_heads|linear_num_heads", 2),
    (r"linear_num_value_heads|index_n_heads", 4),
    (r"^(mamba_n_groups|n_groups|n_group|topk_group|num_expert_group|num_shared_experts|n_shared_experts|moe_num_shared_experts)$", 1),
    (r"^qk_head_dim$", 32),
    (r"head_dim$|^kv_channels$|^mamba_d_head$|^d_kv$|^dim_head$", 16),
    (r"^(qk_rope_head_dim|rotary_dim)$", 16),
    (r"mamba_d_ssm|^d_inner$", 128),
    (r"expand$|mamba_expand$", 2),
    (r"lora_rank$|laurel_rank|low_rank_dim|^gated_norm_rank$", 64),
    (r"state_size$|_d_state$", 16),
    (r"chunk_size$|^block_size$", 16),
    (r"dt_rank$|time_step_rank", 16),
    (r"^(num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts)$", 4),
    (r"zero_expert_num", 2),
    (r"^(num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts|moe_top_k)$", 2),
    (r"^moe_intermediate_size$|shared_expert|expert_ffn", 64),
    (r"intermediate_size$|ffn_dim$|ffn_hidden_size|^d_ff$|^dff$|^dim_ff$|^n_inner$|feed_forward_proj_dim|_inner_dim", 128),
    (r"^attention_hidden_size$", 2 * HIDDEN),
    (r"hidden_size(_per_layer_input)?$|^n_embd$|^d_model$|^dim$|^embedding_size$|word_embed_proj_dim|_embedding_size$|^lru_width$|^emb_dim$|model_dim", HIDDEN),
    (r"vocab_size|encoder_hash_byte_group_vocab", VOCABULARY),
    (r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|max_sequence_length)$", 512),
    (r"sliding_window(_size)?$|attention_window_size|^window_size$|attention_chunk_size|index_topk$|local_attention_window", 16),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"layer_interval$|full_attention_interval|layer_group_size|attn_layer_period|expert_layer_period|decoder_sparse_step", 2),
    (r"attn_layer_offset|expert_layer_offset", 1),
)  # fmt: skip
"""Pattern of a key -> its value; the first that matches counts."""
NOT_SIZES = (
    "model_type", "transformers_version", "architectures", "dtype", "_name_or_path", "id2label", "label2id",
)  # fmt: skip


SPECIAL: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {"mamba_d_head": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "reformer": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [16, 32]},
    "zamba": {
        "num_hidden_layers": 5,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "dory": {
        "num_hidden_layers": 8,
        "n_input_layers": 2,
        "n_recurrent_layers": 4,
        "n_output_layers": 2,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp"] * 2,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "xlnet": {"d_head": 16},
    "xlstm": {"embedding_dim": 64},
}
"""Keys that must agree with each other in a way that no name tells."""


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """A config of `model_type` with few, narrow layers of each of its kinds.

    Raises:
        Exception: whatever the config class says against the values.
    """
    with quiet():
        default = AutoConfig.for_model(model_type)
        small = {**scaled(plain(default)), **_tower_left_out(default)}
        return type(default)(**{**small, **SPECIAL.get(model_type, {}), **overrides})


def _tower_left_out(default: Any) -> dict[str, Any]:
    """A tower that models of the type have, but a default config leaves out."""
    kind = getattr(type(default), "sub_configs", {}).get("vision_config")
    if kind in (None, AutoConfig) or getattr(default, "vision_config", None) is not None:
        return {}
    return {"vision_config": scaled(plain(kind()))}


def replica_of(config: Any) -> Any:
    """The same kind of config with small sizes: its own layers and switches, at most some of each kind.

    Raises:
        Exception: whatever the config class says against the values.
    """
    with quiet():
        return type(config)(**{**scaled(plain(config)), **SPECIAL.get(str(config.model_type), {})})


def with_values(model: Any) -> Any:
    """The model, with what its class fills with one number (gates, step sizes, scales) a little off it, as in a trained
    one: where such a number is zero, nothing behind it could learn or be told apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            if (
                parameter.is_floating_point()
                and parameter.numel() > 1
                and bool((parameter == parameter.flatten()[0]).all())
            ):
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def plain(config: Any) -> dict[str, Any]:
    """The values of a config without what only says what it is."""
    found = config.to_dict()
    for key in NOT_SIZES:
        found.pop(key, None)
    return dict(found)


def scaled(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` scaled down, dictionaries inside them too."""
    kept = _representative_layers(values)
    found = {
        key: _scaled(key, value, values, kept) for key, value in values.items() if key not in NOT_SIZES[1:]
    }
    for key in ("head_dim", "kv_channels"):
        if key in found and found[key] is None:
            found[key] = HIDDEN // 4
    if found.get("is_decoder") is False and not found.get("is_encoder_decoder"):
        found["is_decoder"] = True
    return found


def _scaled(key: str, value: Any, values: Mapping[str, Any], kept: list[int]) -> Any:
    if isinstance(value, Mapping):
        if re.search("rope", key):
            return _rope(value, values)
        return scaled(value) if key != "per_layer_config" else _kept_layers(value, kept)
    if isinstance(value, list | tuple) and len(value) == _layer_count(values) and len(value) > 1:
        return [_scaled(key, value[i], values, kept) for i in kept]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if LAYER_COUNTS.match(key):
        return len(kept)
    if re.search(r"token_(id|index)$", key):
        return {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}.get(key, 3)
    if key == "num_key_value_heads" and value == values.get("num_attention_heads"):
        return 4  # where every head has keys of its own, the class may rely on it
    for pattern, small in RULES:
        if re.search(pattern, key):
            return min(small, value) if value > 0 else value
    return value


def _layer_count(values: Mapping[str, Any]) -> int:
    counts = [n for key, n in values.items() if LAYER_COUNTS.match(key) and isinstance(n, int)]
    return max(counts, default=0)


def _representative_layers(values: Mapping[str, Any]) -> list[int]:
    """Numbers of layers that show every kind there is, at least two, in their order."""
    count = _layer_count(values)
    lists = [v for v in values.values() if isinstance(v, list | tuple) and len(v) == count and count > 1]
    seen: dict[str, int] = {}
    for layer in range(count):
        seen.setdefault(repr([one[layer] for one in lists]), layer)
    kept = sorted(seen.values())[:MOST_LAYERS]
    others = [layer for layer in range(count) if layer not in kept]
    while len(kept) < 2:
        kept = sorted([*kept, others.pop(0)]) if others else [*kept, kept[-1] if kept else 0]
    return kept


def _kept_layers(layers: Mapping[Any, Any], kept: list[int]) -> dict[Any, Any]:
    """Settings by layer number, of the layers that are kept, counted anew."""
    found = {}
    for new, old in enumerate(kept):
        for key in (old, str(old)):
            if key in layers:
                found[new if isinstance(key, int) else str(new)] = scaled(layers[key])
    return found


def _rope(rope: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings: nested by kind of layer, or with lists as long as a head is wide."""
    if any(isinstance(value, Mapping) for value in rope.values()):
        return {
            key: _rope(value, values) if isinstance(value, Mapping) else value for key, value in rope.items()
        }
    found = dict(rope)
    if found.get("rope_type") in ("longrope", "su"):
        return {"rope_type": "default", "rope_theta": found.get("rope_theta", 10000.0)}
    if isinstance(found.get("mrope_section"), list):
        found["mrope_section"] = [4, 2, 2]
    return found
