"""The closed form against published measurements, each row with what is assumed of it.

One number is fitted, on the four rows of Llama 3.1 8B: the likely share of a step's moving bytes that the allocator
reserves besides (estimate.RESERVE_SHARE). Everything else is arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qlora_engine.memory import gpus, static
from qlora_engine.memory.estimate import RESERVE, RESERVE_SHARE, Estimate
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


def test_the_reserve_is_what_its_source_says() -> None:
    """No arithmetic gives it: it is fitted on the published peaks above, or what a report of a GPU has measured."""
    assert (*RESERVE_SHARE,) == (RESERVE.low, RESERVE.likely, RESERVE.high)
    assert RESERVE.low < RESERVE.likely < RESERVE.high
    assert RESERVE.source.startswith("measured on ") or RESERVE_SHARE == (0.03, 0.18, 0.30)


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
    assert torchtune_bytes(rank, targets) / 2**30 == pytest.approx(published_gib, rel=0.08)


def torchtune_bytes(rank: int, targets: object) -> int:
    return estimated(
        "llama-2-7b", 1024, 2, lora__rank=rank, lora__targets=targets, lora__dtype="bf16", training__loss="full",
        training__optimizer="adamw_torch_fused", training__effective_batch=64,
    ).sides["lora_16bit"].device_likely  # fmt: skip


def published_rows() -> Iterator[tuple[str, float, float, float]]:
    """(words, published, predicted, how far off it may be) of every measurement above and below, for the table that
    `make bench-memory` prints."""
    for tokens, size in CONTEXT_ROWS:
        likely = estimated("llama-3.1-8b", tokens, upcast=True, **LLAMA_31).double_quant.device_likely
        yield f"Llama 3.1 8B, rank 32, {tokens:,} tokens, GB", size, likely / GB, 0.08 * size
    for rank, targets, size in TORCHTUNE_ROWS:
        words = targets if isinstance(targets, str) else "q, v"
        yield (
            f"Llama 2 7B, 16-bit LoRA, rank {rank}, {words}, GiB",
            size,
            torchtune_bytes(rank, targets) / 2**30,
            0.08 * size,
        )
    for name, size in SAVINGS:
        yield f"{name}, saved by double quantization, GB", size, saved_bytes(name) / GB, 0.02
    yield "falcon-40b, saved by double quantization, GB", 1.92, falcon_40b_saving() / GB, 0.02
    yield "qwen2.5-7b loaded, GB", 5.44, loaded_bytes("qwen2.5-7b", "double_quant") / GB, 0.08 * 5.44
    for name, single, double in INFERENCE:
        found = answering(name)
        yield (
            f"{name} answering, single, GB",
            single,
            found.single_quant.moments["generating"] / GB,
            0.08 * single,
        )
        yield (
            f"{name} answering, double, GB",
            double,
            found.double_quant.moments["generating"] / GB,
            0.08 * double,
        )
    base = loaded_bytes("llama-7b", "single_quant", upcast=True)
    yield "LLaMA 7B base in the paper, MB", 5048, base / 1e6, 0.08 * 5048


SAVINGS = (("llama-2-7b", 0.30), ("llama-2-13b", 0.59), ("phi-1.5", 0.06), ("codellama-34b", 1.57))


@pytest.mark.parametrize(("name", "published_gb"), SAVINGS)
def test_published_savings_of_double_quantization(name: str, published_gb: float) -> None:
    """Measured by LitGPT, which quantizes the head too."""
    assert saved_bytes(name) / GB == pytest.approx(published_gb, abs=0.02)


def saved_bytes(name: str) -> int:
    found = facts(name)
    head = found.vocab_size * found.hidden_size
    return sum(
        sign * (static.constants_bytes(found, is_double_quant=is_double) + static.constants_of(head, is_double_quant=is_double))
        for sign, is_double in ((1, False), (-1, True))
    )  # fmt: skip


def test_published_saving_at_40b() -> None:
    """Falcon-40B, which is not trained here: its layers by their shapes, and the head."""
    assert falcon_40b_saving() / GB == pytest.approx(1.92, abs=0.02)


def falcon_40b_saving() -> int:
    """60 layers of fused projections for 128 heads and 8 groups of 64, and an MLP four times as wide."""
    h, layers = 8192, 60
    block = [h * (h + 2 * 8 * 64), h * h, h * 4 * h, 4 * h * h]
    weights = layers * block + [65_024 * h]
    return sum(
        static.constants_of(n, is_double_quant=False) - static.constants_of(n, is_double_quant=True)
        for n in weights
    )


def test_qwen_25_7b_loaded() -> None:
    assert loaded_bytes("qwen2.5-7b", "double_quant") / GB == pytest.approx(5.44, rel=0.08)


def loaded_bytes(name: str, side: str, *, upcast: bool = False) -> int:
    parts = estimated(name, upcast=upcast).sides[side].parts
    return sum(parts[one] for one in ("quantized_weights", "quantization_constants", "unquantized_weights"))


INFERENCE = (
    ("llama-2-7b", 4.57, 4.26),
    ("llama-2-13b", 8.32, 7.72),
    ("codellama-34b", 20.52, 18.95),
)


@pytest.mark.parametrize(("name", "single_gb", "double_gb"), INFERENCE)
def test_published_inference(name: str, single_gb: float, double_gb: float) -> None:
    found = answering(name)
    assert found.single_quant.moments["generating"] / GB == pytest.approx(single_gb, rel=0.08)
    assert found.double_quant.moments["generating"] / GB == pytest.approx(double_gb, rel=0.08)


def answering(name: str) -> Estimate:
    """Answers of about 256 tokens, no adapters: rank 1 stands for none."""
    return estimated(name, 64, lora__rank=1, lora__targets=("q_proj",), training__sample_tokens=256)


@pytest.mark.parametrize(
    ("name", "published_mb"),
    [("llama-7b", 5048), ("llama-13b", 8476), ("llama-33b", 19_924), ("llama-65b", 37_074)],
)
def test_the_papers_bases(name: str, published_mb: float) -> None:
    """Single quantization, embeddings and head in fp32."""
    assert loaded_bytes(name, "single_quant", upcast=True) / 1e6 == pytest.approx(published_mb, rel=0.08)


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
