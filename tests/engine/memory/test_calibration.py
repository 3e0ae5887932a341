"""The closed form against published measurements, each row with what is assumed of it.

One number is fitted, on the four rows of Llama 3.1 8B: the likely share of a step's moving bytes that the allocator
reserves besides (estimate.RESERVE_SHARE). Everything else is arithmetic.
"""

from __future__ import annotations

import pytest

from qlora_engine.memory import gpus, static
from qlora_engine.memory.estimate import RESERVE_SHARE
from tests.engine.memory.settings import estimated, facts

GB = 1e9
CONTEXT_ROWS = ((932, 12), (5789, 24), (15_502, 48), (28_454, 80))
LLAMA_31 = {"lora__rank": 32, "training__loss": "full", "training__optimizer": "adamw_torch_fused"}


@pytest.mark.parametrize(("tokens", "published_gb"), CONTEXT_ROWS)
def test_llama_31_8b_by_context(tokens: int, published_gb: int) -> None:
    """Rank 32, batch 1, checkpointing, all logits, PEFT's k-bit preparation (the rest in fp32): GPU size by length."""
    found = estimated("llama-3.1-8b", tokens, upcast=True, **LLAMA_31).double_quant
    assert found.device_likely / GB == pytest.approx(published_gb, rel=0.08)
    assert found.device_low < found.device_likely < found.device_high


def test_llama_31_8b_grows_by_247_mb_per_thousand_tokens() -> None:
    (first, _), (last, _) = CONTEXT_ROWS[0], CONTEXT_ROWS[-1]
    small = estimated("llama-3.1-8b", first, upcast=True, **LLAMA_31).double_quant.device_likely
    large = estimated("llama-3.1-8b", last, upcast=True, **LLAMA_31).double_quant.device_likely
    assert (large - small) / (last - first) / 1e6 == pytest.approx(2.47, rel=0.04)


def test_one_number_is_fitted() -> None:
    assert RESERVE_SHARE == (0.03, 0.18, 0.30)


TORCHTUNE_ROWS = (
    (8, ("q_proj", "v_proj"), 15.57),
    (8, "all-linear", 15.87),
    (64, ("q_proj", "v_proj"), 15.86),
    (64, "all-linear", 17.04),
)


@pytest.mark.parametrize(("rank", "targets", "published_gib"), TORCHTUNE_ROWS)
def test_16bit_lora_of_llama_2_7b(rank: int, targets: object, published_gib: float) -> None:
    """All in 16 bits, checkpointing, all logits; 2 x 1,024 tokens and gradient accumulation
    assumed, which the publisher does not tell."""
    side = estimated(
        "llama-2-7b", 1024, 2, lora__rank=rank, lora__targets=targets, lora__dtype="bf16", training__loss="full",
        training__optimizer="adamw_torch_fused", training__effective_batch=64,
    ).sides["lora_16bit"]  # fmt: skip
    assert side.device_likely / 2**30 == pytest.approx(published_gib, rel=0.08)


SAVINGS = (("llama-2-7b", 0.30), ("llama-2-13b", 0.59), ("phi-1.5", 0.06), ("codellama-34b", 1.57))


@pytest.mark.parametrize(("name", "published_gb"), SAVINGS)
def test_published_savings_of_double_quantization(name: str, published_gb: float) -> None:
    """Measured by LitGPT, which quantizes the head too."""
    found = facts(name)
    head = found.vocab_size * found.hidden_size
    saved = sum(
        sign * (static.constants_bytes(found, is_double_quant=is_double) + static.constants_of(head, is_double_quant=is_double))
        for sign, is_double in ((1, False), (-1, True))
    )  # fmt: skip
    assert saved / GB == pytest.approx(published_gb, abs=0.02)


def test_qwen_25_7b_loaded() -> None:
    parts = estimated("qwen2.5-7b").double_quant.parts
    loaded = sum(
        parts[name] for name in ("quantized_weights", "quantization_constants", "unquantized_weights")
    )
    assert loaded / GB == pytest.approx(5.44, rel=0.08)


INFERENCE = (
    ("llama-2-7b", 4.57, 4.26),
    ("llama-2-13b", 8.32, 7.72),
    ("codellama-34b", 20.52, 18.95),
)


@pytest.mark.parametrize(("name", "single_gb", "double_gb"), INFERENCE)
def test_published_inference(name: str, single_gb: float, double_gb: float) -> None:
    """Answers of about 256 tokens, no adapters: rank 1 stands for none."""
    found = estimated(name, 64, lora__rank=1, lora__targets=("q_proj",), training__sample_tokens=256)
    assert found.single_quant.moments["generating"] / GB == pytest.approx(single_gb, rel=0.08)
    assert found.double_quant.moments["generating"] / GB == pytest.approx(double_gb, rel=0.08)


def test_the_papers_7b_base() -> None:
    """5,048 MB: single quantization, embeddings and head in fp32."""
    parts = estimated("llama-7b", upcast=True).single_quant.parts
    base = sum(parts[name] for name in ("quantized_weights", "quantization_constants", "unquantized_weights"))
    assert base / 1e6 == pytest.approx(5048, rel=0.08)


@pytest.mark.parametrize("changes", [{}, {"training__optimizer": "paged_adamw_32bit", "lora__dtype": "bf16"}])
def test_the_papers_claims(changes: dict[str, object]) -> None:
    """Rank 64 on all linear layers, batch 1, 512 tokens, checkpointing, paged AdamW; the paper's adapters are bf16."""
    large = estimated("llama-65b", lora__rank=64, **changes)
    assert large.double_quant.device_likely <= gpus.find("RTX A6000").usable_bytes
    small = estimated("llama-33b", lora__rank=64, **changes)
    assert small.double_quant.device_likely <= gpus.find("RTX 4090").usable_bytes


def test_65b_does_not_fit_16_gb() -> None:
    usable = gpus.find("RTX 4080 16GB").usable_bytes
    least = estimated("llama-65b", 8, lora__rank=1, lora__targets=("q_proj",)).double_quant
    assert least.device_low > 2 * usable


def test_llama_3_8b_shows_what_others_hide() -> None:
    """The fp32 copy of embeddings and head (2.1 GB) that is not made, logits in fp32, constants without DQ."""
    ours, upcast = estimated("llama-3-8b"), estimated("llama-3-8b", upcast=True)
    extra = upcast.double_quant.parts["unquantized_weights"] - ours.double_quant.parts["unquantized_weights"]
    assert extra / GB == pytest.approx(2.1, abs=0.01)
    long, whole = (estimated("llama-3-8b", 2048, 2, training__loss=kind) for kind in ("chunked", "full"))
    assert whole.double_quant.parts["step_temporary"] > 3 * long.double_quant.parts["step_temporary"]
    assert whole.double_quant.parts["step_temporary"] >= 4096 * 128_256 * 4
    constants = (
        ours.single_quant.parts["quantization_constants"] - ours.double_quant.parts["quantization_constants"]
    )
    assert constants / GB == pytest.approx(0.325, abs=0.005)
