"""One weight, quantized to 4 bits and back, with the bytes it takes. Imports torch and bitsandbytes.

NF4 and FP4 are bitsandbytes' own calls, those that a Linear4bit makes when it is loaded. Linear int4, which it does not
offer, is a symmetric absmax grid: per block the scale is the largest magnitude, and each weight becomes the nearest of
-7 ... 7 sevenths of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from bitsandbytes import functional

from qlora_engine.models.loading import constants_bytes
from qlora_engine.quantization.variants import Variant

INT4_TOP = 7
NESTED_BLOCK = 256
"""Constants per second-level constant (bitsandbytes knows no other)."""
TINY = 1e-38
"""bitsandbytes' own guard against a block of zeros."""


@dataclass(frozen=True)
class RoundTrip:
    """`weight`: what a 4-bit layer computes with, in the type and shape of what was given; `stored_bytes`: packed
    weights and all constants, as they stay in memory."""

    weight: torch.Tensor
    stored_bytes: int


def round_trip(weight: torch.Tensor, variant: Variant) -> RoundTrip:
    """Quantize `weight` (out, in), in the type that training computes in, and bring it back."""
    if variant.quant_type == "int4":
        return _linear_int4(weight, variant.block_size, is_nested=variant.double_quant)
    # As one row: on the CPU bitsandbytes 0.50 takes the wrong constants for rows that are not whole blocks (see below).
    packed, state = functional.quantize_4bit(
        weight.reshape(-1),
        blocksize=variant.block_size,
        compress_statistics=variant.double_quant,
        quant_type=variant.quant_type,
    )
    restored = functional.dequantize_4bit(packed, state)
    return RoundTrip(restored.reshape(weight.shape), packed.nbytes + constants_bytes(state))


def _linear_int4(weight: torch.Tensor, block_size: int, *, is_nested: bool) -> RoundTrip:
    count = weight.numel()
    missing = -count % block_size
    blocks = torch.nn.functional.pad(weight.float().reshape(-1), (0, missing)).view(-1, block_size)
    absmax = blocks.abs().amax(dim=1)
    levels = (blocks / absmax.clamp(min=TINY).unsqueeze(1)).mul_(INT4_TOP).round_()
    stored_bytes = (count + 1) // 2
    if is_nested:
        absmax, nested_bytes = _nested(absmax)
        stored_bytes += nested_bytes
    else:
        stored_bytes += absmax.nbytes
    restored = levels.mul_((absmax / INT4_TOP).unsqueeze(1)).reshape(-1)[:count]
    return RoundTrip(restored.reshape(weight.shape).to(weight.dtype), stored_bytes)


def _nested(absmax: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The constants as double quantization leaves them, and their bytes: 8 bit around their mean in blocks of 256
    (bitsandbytes, functional.quantize_4bit)."""
    offset = absmax.mean()
    codes, state = functional.quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
    restored = functional.dequantize_blockwise(codes, state) + offset
    return restored, codes.nbytes + state.absmax.nbytes + state.code.nbytes + offset.nbytes
