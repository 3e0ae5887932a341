"""Writes a tiny model folder as an F32 GGUF file, the way llama.cpp's converter does: for testing the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

NAMES = {"gemma3_text": "gemma3"}


def write_gguf(folder: Path, out: Path, *, rope_freqs: list[float] | None = None, **fields: Any) -> Path:
    """`fields` are added under the architecture's name, `rope__scaling__type` as `rope.scaling.type`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = NAMES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(out, kind)
    _write_sizes(writer, config, kind)
    for key, value in fields.items():
        name = f"{kind}.{key.replace('__', '.')}"
        writer.add_string(name, value) if isinstance(value, str) else writer.add_float32(name, value)
    _write_tokenizer(writer, folder)
    for name, tensor in _tensors(folder, config, kind):
        writer.add_tensor(name, tensor)
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_freqs, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _write_sizes(writer: gguf.GGUFWriter, config: dict[str, Any], kind: str) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-5))
    writer.add_layer_norm_eps(
        config.get("layer_norm_eps", config.get("norm_eps", config.get("norm_epsilon", 1e-5)))
    )
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(rope.get("full_attention", rope).get("rope_theta", 10000.0))
    partial = rope.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(head_dim * partial))
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    writer.add_vocab_size(config["vocab_size"])


def _write_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    vocab = stored["model"]["vocab"]
    special = {entry["content"] for entry in stored["added_tokens"]}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    )
    merges = stored["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(vocab[settings["bos_token"]])
    writer.add_eos_token_id(vocab[settings["eos_token"]])
    writer.add_pad_token_id(vocab[settings["pad_token"]])
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    writer.add_chat_template(template)


def _tensors(folder: Path, config: dict[str, Any], kind: str) -> list[tuple[str, np.ndarray]]:
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    found = []
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.to(torch.float32).numpy()
        stem, suffix = name.rsplit(".", 1)
        if kind == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = config["num_attention_heads" if "q_proj" in stem else "num_key_value_heads"]
            values = _interleave(values, heads)
        if (kind.startswith("gemma") or kind == "nemotron") and "norm" in stem and suffix == "weight":
            values = values + 1
        found.append((f"{names.get_name(stem)}.{suffix}", values))
    return found


def _interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbouring dimensions, transformers the two halves of a head."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
