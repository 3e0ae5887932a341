"""Quantizing on the CPU gives bitsandbytes' own bits: of any shape, type and number, and beside every bound."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.backends.default import ops as default_ops

from qlora_engine.models import four_bit, four_bit_kernel

TYPES = ("nf4", "fp4")
SHAPES = [(1,), (7, 9), (130,), (64, 64), (300, 1000), (4096, 33)]


def theirs(weights: torch.Tensor, kind: str, storage: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What bitsandbytes computes where there is no kernel for the device."""
    operation = torch.ops.bitsandbytes.quantize_4bit.default
    key = torch._C.DispatchKey.CompositeExplicitAutograd
    packed, factors = operation._op_dk(key, weights, four_bit.BLOCK, kind, storage)
    return packed, factors


def require_same(weights: torch.Tensor, kind: str, storage: torch.dtype = torch.uint8) -> None:
    packed, factors = four_bit_kernel.quantize_4bit(weights, four_bit.BLOCK, kind, storage)
    their_packed, their_factors = theirs(weights, kind, storage)
    assert packed.shape == their_packed.shape
    assert packed.dtype == their_packed.dtype
    assert torch.equal(packed.view(torch.uint8), their_packed.view(torch.uint8))
    assert torch.equal(factors.view(torch.int32), their_factors.view(torch.int32))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_shape_and_type(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    require_same((torch.randn(shape) * 0.02).to(dtype), kind)


@pytest.mark.parametrize("kind", TYPES)
def test_the_numbers_beside_every_bound(kind: str) -> None:
    """In a block whose largest is 1, so that they stay what they are."""
    bounds, _ = default_ops._get_4bit_quantize_bounds(kind, torch.device("cpu"))
    near = [bounds, *(torch.nextafter(bounds, torch.full_like(bounds, to)) for to in (-2.0, 2.0))]
    require_same(torch.cat([*near, torch.ones(four_bit.BLOCK - 45)]), kind)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e30, float("inf"), float("nan")])
def test_blocks_without_a_usual_scale(kind: str, value: float) -> None:
    weights = torch.linspace(-1, 1, 3 * four_bit.BLOCK)
    weights[70] = value
    require_same(weights, kind)
    require_same(torch.full((2, four_bit.BLOCK), value), kind)


def test_packed_in_a_wider_type() -> None:
    require_same(torch.randn(64, 64), "nf4", torch.bfloat16)


def test_rows_that_do_not_follow_each_other() -> None:
    require_same(torch.randn(96, 128).t(), "nf4")


@pytest.mark.parametrize("kind", TYPES)
def test_no_cell_has_two_bounds(kind: str) -> None:
    bounds, _ = default_ops._get_4bit_quantize_bounds(kind, torch.device("cpu"))
    held = four_bit_kernel._Cells._of(bounds)
    assert held.unique().numel() == bounds.unique().numel() == 15


def test_bitsandbytes_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight is looked for among the bounds any more."""
    monkeypatch.setattr(torch, "bucketize", None)
    functional.quantize_4bit(torch.randn(64, 64), quant_type="nf4")
