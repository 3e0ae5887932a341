"""Flags that change a family's tensors, models that also see, and configs that leave numbers out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from qlora_engine.config import QuantizationSettings
from qlora_engine.device import DevicePlan
from qlora_engine.models import families, loading, spec
from tests.support.tiny import make_tiny_seeing, tiny_config

FLAGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": 4, "head_dim": 32}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True}),
    ("gemma", {"attention_bias": True, "tie_word_embeddings": False}),
    ("stablelm", {"use_qkv_bias": True}),
    ("stablelm", {"use_parallel_residual": True}),
    ("starcoder2", {"use_bias": False}),
    ("cohere", {"use_qk_norm": True}),
    ("gpt_neox", {"attention_bias": False}),
    ("gpt_neox", {"tie_word_embeddings": True}),
    ("opt", {"enable_bias": False}),
    ("opt", {"tie_word_embeddings": False}),
    ("ernie4_5", {"use_bias": True}),
    ("seed_oss", {"attention_bias": False, "attention_out_bias": True}),
    ("glm4", {"attention_bias": False}),
    ("nemotron", {"attention_bias": True, "mlp_bias": True}),
    ("olmo", {"attention_bias": True}),
    ("mixtral", {"num_local_experts": 3}),
    ("phi3", {"tie_word_embeddings": True}),
]


def shapes_built(config: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {_pattern(name): tuple(p.shape) for name, p in model.named_parameters()}


def shapes_told(facts: spec.ModelFacts) -> dict[str, tuple[int, ...]]:
    told = {tensor.name: tensor.shape for tensor in facts.sixteen_bit}
    weights = {f"{n.path}.weight": (n.out_features, n.in_features) for n in facts.linears}
    experts = {one.path: one.shape for one in facts.stacked}
    return {**told, **weights, **experts}


def _pattern(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


@pytest.mark.parametrize(("kind", "flags"), FLAGS, ids=lambda value: str(value)[:60])
def test_flags_change_the_tensors_that_they_change(kind: str, flags: dict[str, Any]) -> None:
    config = tiny_config(kind, **flags)
    assert shapes_told(spec.facts_from_config(config.to_dict(), kind)) == shapes_built(config)


@pytest.mark.parametrize("kind", sorted(families.DECODERS))
def test_flags_left_out_mean_what_transformers_takes_them_to_mean(kind: str) -> None:
    config = tiny_config(kind)
    flags = ("_bias", "tie_word", "use_qk_norm", "use_parallel")
    told = {k: v for k, v in config.to_dict().items() if not any(flag in k for flag in flags)}
    assert shapes_told(spec.facts_from_config(told, kind)) == shapes_built(config)


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text", "qwen3", "glm4", "seed_oss", "helium"])
def test_a_head_size_left_out_is_the_familys(kind: str) -> None:
    told = tiny_config(kind).to_dict()
    del told["head_dim"]
    assert families.sizes_of(told).head_dim == AutoConfig.for_model(kind).head_dim


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("phi", {"qk_layernorm": True}),
        ("stablelm", {"qk_layernorm": True}),
        ("qwen3_moe", {"mlp_only_layers": [0]}),
        ("qwen3_moe", {"decoder_sparse_step": 2}),
        ("opt", {"word_embed_proj_dim": 32}),
    ],
)
def test_variants_that_are_not_counted_are_told_by_their_class(
    kind: str, flags: dict[str, Any], home: Path
) -> None:
    config = tiny_config(kind, **flags)
    facts = spec.facts_from_config(config.to_dict(), kind)
    assert facts.source == "class"
    assert shapes_told(facts) == shapes_built(config)


@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
def test_of_a_model_that_sees_the_language_model_is_trained(
    kind: str, tmp_path: Path, home: Path, cpu: DevicePlan
) -> None:
    folder = make_tiny_seeing(kind, tmp_path / kind)
    facts = spec.facts_of_folder(folder)
    assert facts.is_tied == (kind == "gemma3")
    loaded = loading.load_quantized(folder, QuantizationSettings(), cpu)
    assert loaded.report.unquantized_bytes == 4 * facts.unquantized_parameters
    text_only = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, **loading.text_model_arguments(folder)
    )
    assert sum(p.numel() for p in text_only.parameters()) == facts.parameters
    whole = AutoModelForImageTextToText.from_pretrained(str(folder), dtype=torch.float32)
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        difference = (text_only(ids).logits - whole(input_ids=ids).logits).abs().max()
    assert difference < 1e-3


def test_a_nested_config_may_leave_numbers_out() -> None:
    """As the published Gemma 3 4B does."""
    nested = {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "sliding_window": 1024,
    }  # fmt: skip
    facts = spec.facts_from_config({"model_type": "gemma3", "text_config": nested}, "gemma-3-4b")
    assert (facts.heads, facts.kv_heads, facts.head_dim, facts.vocab_size) == (8, 4, 256, 262_208)
    assert facts.is_tied
    assert facts.sliding_window == 1024
    config = AutoConfig.for_model(**nested)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert facts.parameters == sum(p.numel() for p in model.parameters())


def test_a_window_that_is_not_used_is_not_told() -> None:
    config = {**tiny_config("qwen2").to_dict(), "sliding_window": 4096}
    assert spec.facts_from_config({**config, "use_sliding_window": False}, "q").sliding_window is None
    assert spec.facts_from_config({**config, "use_sliding_window": True}, "q").sliding_window == 4096


PUBLISHED = [
    # name, config, quantized and embedding parameters in billions, NF4+DQ and whole size in GiB
    ("Llama-3.2-1B", (2048, 8192, 16, 32, 8, 128_256, True), 0.973, 0.263, 0.47, 0.96),
    ("Llama-2-7B", (4096, 11_008, 32, 32, 32, 32_000, False), 6.476, 0.262, 3.11, 3.60),
    ("Llama-3.1-8B", (4096, 14_336, 32, 32, 8, 128_256, False), 6.979, 1.051, 3.35, 5.31),
    ("LLaMA-33B", (6656, 17_920, 60, 52, 52, 32_000, False), 32.102, 0.426, 15.42, 16.22),
    ("LLaMA-65B", (8192, 22_016, 80, 64, 64, 32_000, False), 64.760, 0.524, 31.11, 32.09),
]


@pytest.mark.parametrize(("name", "sizes", "quantized", "ends", "packed_gib", "whole_gib"), PUBLISHED)
def test_published_models_have_their_published_sizes(
    name: str, sizes: tuple[Any, ...], quantized: float, ends: float, packed_gib: float, whole_gib: float
) -> None:
    keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size", "tie_word_embeddings",
    )  # fmt: skip
    facts = spec.facts_from_config({"model_type": "llama", **dict(zip(keys, sizes, strict=True))}, name)
    at_ends = sum(t.elements for t in facts.unquantized if t.role in ("embedding", "head"))
    packed = facts.quantized_parameters * (0.5 + 1 / 64 + 4 / (64 * 256))
    assert facts.quantized_parameters / 1e9 == pytest.approx(quantized, abs=0.0006)
    assert at_ends / 1e9 == pytest.approx(ends, abs=0.0006)
    assert packed / 2**30 == pytest.approx(packed_gib, abs=0.006)
    assert (packed + 2 * facts.unquantized_parameters) / 2**30 == pytest.approx(whole_gib, abs=0.006)
