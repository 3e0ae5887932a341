"""Facts of a GGUF file from its header, before it is converted. Torch-free; imports the gguf package (numpy)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_engine.errors import EngineError
from qlora_engine.models.spec import ModelFacts, facts_from_config

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
}


def facts_of_gguf(file: Path, name: str) -> ModelFacts:
    """Facts of the model that the file would become.

    Raises:
        EngineError: not a GGUF file, cut short, or an architecture that is not converted here.
    """
    fields, tensors = read_gguf(file)
    architecture = str(fields.get("general.architecture", ""))
    if architecture not in ARCHITECTURES:
        raise EngineError(
            "model.unknown_architecture",
            f"{file.name} holds a model of type {architecture!r}, which is not converted here",
            "known: " + ", ".join(sorted(ARCHITECTURES)),
        )
    facts = facts_from_config(_config(fields, tensors, architecture), name, origin="gguf")
    licence = fields.get("general.license")
    return replace(
        facts,
        stored_bytes=file.stat().st_size,
        stored_dtype="GGUF",
        licence=str(licence) if licence else None,
        chat_template=fields.get("tokenizer.chat_template"),
        path=str(file),
    )


def read_gguf(file: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """(plain metadata, tensor name -> shape as torch orders it).

    Raises:
        EngineError: not a GGUF file, or cut short.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(file)
        plain = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("tokenizer.ggml")
        }
        shapes = {t.name: tuple(int(side) for side in reversed(t.shape)) for t in reader.tensors}
        tokens = reader.fields.get("tokenizer.ggml.tokens")
    except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise EngineError(
            "model.damaged", f"{file.name} is not a whole GGUF file: {error}", "download it again"
        ) from error
    plain["vocab_size"] = len(tokens.data) if tokens is not None else None
    return plain, shapes


def _config(fields: dict[str, Any], tensors: dict[str, tuple[int, ...]], architecture: str) -> dict[str, Any]:
    def value(key: str) -> Any:
        return fields.get(f"{architecture}.{key}")

    vocab, hidden = tensors["token_embd.weight"]
    config = {
        "model_type": ARCHITECTURES[architecture],
        "hidden_size": hidden,
        "vocab_size": vocab,
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": value("attention.key_length") or value("rope.dimension_count"),
        "intermediate_size": value("feed_forward_length"),
        "max_position_embeddings": value("context_length"),
        "sliding_window": value("attention.sliding_window"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
    }
    return {key: setting for key, setting in config.items() if setting is not None}
