"""Storing one weight in 4 bits: against a plain computation, against theory, and where there is nothing to store."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bitsandbytes import functional

from qlora_engine.quantization.roundtrip import round_trip
from qlora_engine.quantization.variants import BLOCK_SIZES, Variant, grid

ALL = grid(BLOCK_SIZES)
LEVELS = {
    "nf4": functional.get_4bit_type("nf4", device="cpu").double().numpy(),
    "fp4": functional.get_4bit_type("fp4", device="cpu").double().numpy(),
    "int4": np.arange(-7, 8) / 7,
}


def plain(weight: torch.Tensor, quant_type: str, block_size: int) -> np.ndarray:
    """Nearest level times the block's largest magnitude, one block after the other, in float64."""
    flat = weight.double().numpy().reshape(-1)
    found = np.empty_like(flat)
    for start in range(0, len(flat), block_size):
        block = flat[start : start + block_size]
        top = np.abs(block).max()
        nearest = np.abs(block[:, None] / (top or 1.0) - LEVELS[quant_type]).argmin(axis=1)
        found[start : start + block_size] = LEVELS[quant_type][nearest] * top
    return found.reshape(tuple(weight.shape))


def error(weight: torch.Tensor, variant: Variant) -> float:
    lost = weight.double() - round_trip(weight, variant).weight.double()
    return float(lost.norm() / weight.double().norm())


@pytest.fixture(scope="module")
def normal() -> torch.Tensor:
    """A quarter of a million N(0, 1) weights."""
    return torch.randn(512, 512, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quant_type", sorted(LEVELS))
@pytest.mark.parametrize("block_size", [32, 64, 256])
@pytest.mark.parametrize("shape", [(24, 256), (7, 96), (5, 33)], ids=["whole", "broken rows", "odd"])
def test_as_a_plain_computation_has_it(quant_type: str, block_size: int, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = round_trip(weight, Variant(quant_type, block_size)).weight
    np.testing.assert_allclose(found.double().numpy(), plain(weight, quant_type, block_size), atol=2e-6)


def expected_square(quant_type: str, block_size: int, blocks: int = 4000) -> float:
    """Mean squared error of N(0, 1) weights, by drawing blocks with another generator and plain arithmetic."""
    drawn = np.random.default_rng(3).standard_normal((blocks, block_size))
    top = np.abs(drawn).max(axis=1, keepdims=True)
    levels = np.sort(LEVELS[quant_type])
    middles = (levels[1:] + levels[:-1]) / 2
    restored = levels[np.searchsorted(middles, drawn / top)] * top
    return float(((drawn - restored) ** 2).mean())


@pytest.mark.parametrize("quant_type", sorted(LEVELS))
def test_normal_weights_lose_what_theory_says(quant_type: str, normal: torch.Tensor) -> None:
    found = error(normal, Variant(quant_type)) ** 2
    assert found == pytest.approx(expected_square(quant_type, 64), rel=0.02)


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_loses_least_on_normal_weights(nested: bool, normal: torch.Tensor) -> None:
    """What NF4 was made for (arXiv 2305.14314, section 3)."""
    lost = {quant_type: error(normal, Variant(quant_type, 64, nested)) for quant_type in LEVELS}
    assert lost["nf4"] < 0.95 * min(lost["fp4"], lost["int4"])


@pytest.mark.parametrize("quant_type", sorted(LEVELS))
@pytest.mark.parametrize("nested", [False, True])
def test_larger_blocks_lose_more(quant_type: str, nested: bool, normal: torch.Tensor) -> None:
    lost = [error(normal, Variant(quant_type, size, nested)) for size in BLOCK_SIZES]
    assert lost == sorted(lost)


@pytest.mark.parametrize("quant_type", sorted(LEVELS))
def test_double_quantization_costs_little_and_saves_what_theory_says(
    quant_type: str, normal: torch.Tensor
) -> None:
    single, double = (round_trip(normal, Variant(quant_type, 64, nested)) for nested in (False, True))
    once_per_layer = 256 * 4 + 4  # the second level's code table and the offset
    saved = 8 * (single.stored_bytes - double.stored_bytes + once_per_layer) / normal.numel()
    assert saved == pytest.approx(32 / 64 - 8 / 64 - 32 / (64 * 256), abs=1e-6)
    assert saved == pytest.approx(0.373, abs=0.001)
    assert error(normal, Variant(quant_type, 64, True)) < 1.005 * error(normal, Variant(quant_type, 64))


@pytest.mark.parametrize("variant", ALL, ids=lambda variant: variant.key)
def test_zeros_stay_zeros(variant: Variant) -> None:
    assert not round_trip(torch.zeros(8, 96), variant).weight.any()
    half = torch.zeros(64, 96)
    half[:2] = 1.0
    restored = round_trip(half, variant).weight
    assert bool(torch.isfinite(restored).all())
    assert math.isclose(float(restored.norm()), float(half.norm()), rel_tol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("quant_type", sorted(LEVELS))
def test_every_weight_type_is_kept(dtype: torch.dtype, quant_type: str, normal: torch.Tensor) -> None:
    trip = round_trip(normal.to(dtype), Variant(quant_type, 64, True))
    assert trip.weight.dtype == dtype
    assert trip.weight.shape == normal.shape
