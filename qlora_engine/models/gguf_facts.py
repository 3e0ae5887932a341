"""Facts of a GGUF file from its header, before it is converted. Torch-free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_engine.errors import EngineError
from qlora_engine.models.gguf_header import GgufHeader, read_header
from qlora_engine.models.spec import ModelFacts, facts_from_config

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
    "nemotron": "nemotron",
}
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def facts_of_gguf(file: Path, name: str) -> ModelFacts:
    """Facts of the model that the file would become.

    Raises:
        EngineError: not a GGUF file, cut short, or an architecture that is not converted here.
    """
    header = read_header(file)
    facts = facts_from_config(config_of(header, file), name, origin="gguf")
    licence = header.fields.get("general.license")
    template = header.fields.get("tokenizer.chat_template")
    return replace(
        facts,
        stored_bytes=file.stat().st_size,
        stored_dtype="GGUF",
        licence=str(licence) if licence else None,
        chat_template=template if isinstance(template, str) else None,
        path=str(file),
    )


def stored_parameters(header: GgufHeader) -> int:
    """Elements of all tensors that are weights."""
    return sum(t.elements for name, t in header.tensors.items() if name not in ROPE_TENSORS)


def config_of(header: GgufHeader, file: Path) -> dict[str, Any]:
    """The numbers of a `config.json`, from metadata and, where that is silent, from the tensors' shapes.

    Raises:
        EngineError: an architecture that is not converted here, or no embeddings.
    """
    fields, tensors = header.fields, header.tensors
    architecture = str(fields.get("general.architecture", ""))
    if architecture not in ARCHITECTURES:
        raise EngineError(
            "model.unknown_architecture",
            f"{file.name} holds a model of type {architecture!r}, which is not converted here",
            "known: " + ", ".join(sorted(ARCHITECTURES)),
        )
    embeddings = tensors.get("token_embd.weight")
    if embeddings is None or len(embeddings.shape) != 2:
        raise EngineError(
            "model.incomplete",
            f"{file.name} has no embeddings, so it is not a whole model",
            "choose another file",
        )
    config = {
        "model_type": ARCHITECTURES[architecture],
        "vocab_size": embeddings.shape[0],
        "hidden_size": embeddings.shape[1],
        "tie_word_embeddings": "output.weight" not in tensors,
        **_sizes(header, architecture),
        **_flags(header),
    }
    return {key: setting for key, setting in config.items() if setting is not None}


def _sizes(header: GgufHeader, architecture: str) -> dict[str, Any]:
    def value(key: str) -> Any:
        return header.fields.get(f"{architecture}.{key}")

    heads = value("attention.head_count")
    queries = header.tensors.get("blk.0.attn_q.weight")
    head_dim = value("attention.key_length")
    if queries is not None and isinstance(heads, int) and heads > 0:
        head_dim = queries.shape[0] // heads
    return {
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": head_dim,
        "intermediate_size": value("feed_forward_length"),
        "max_position_embeddings": value("context_length"),
        "sliding_window": value("attention.sliding_window"),
    }


def _flags(header: GgufHeader) -> dict[str, bool]:
    has_qkv_bias = "blk.0.attn_q.bias" in header.tensors
    return {
        "attention_bias": has_qkv_bias,
        "use_qkv_bias": has_qkv_bias,
        "use_bias": has_qkv_bias,
        "mlp_bias": "blk.0.ffn_down.bias" in header.tensors,
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in header.tensors,
    }
