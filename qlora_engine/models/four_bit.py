"""Reads 4-bit weights as bitsandbytes packs them, right for every shape. Imports torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit

from qlora_engine.models import four_bit_kernel

four_bit_kernel.install()

BLOCK = 64
"""Weights that share a factor (arXiv 2305.14314, section 3)."""


def absmax_of(state: Any) -> torch.Tensor:
    """One fp32 factor per block of 64."""
    if not state.nested:
        return torch.as_tensor(state.absmax).float()
    return torch.as_tensor(functional.dequantize_blockwise(state.absmax, state.state2) + state.offset).float()


def dequantized(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """The weight that `packed` stands for. Rows that are not whole blocks as one long row: of such, bitsandbytes 0.50 reads
    on some processors constants that are not theirs, and past the end (cdequantize_blockwise_cpu_*)."""
    if packed.device.type != "cpu" or state.shape[-1] % state.blocksize == 0:
        return torch.as_tensor(functional.dequantize_4bit(packed, state))
    flat = functional.QuantState(
        absmax=absmax_of(state), shape=torch.Size((1, math.prod(state.shape))), code=state.code,
        blocksize=state.blocksize, quant_type=state.quant_type, dtype=state.dtype,
    )  # fmt: skip
    return torch.as_tensor(functional.dequantize_4bit(packed, flat)).reshape(state.shape)


def constants_bytes(state: Any) -> int:
    """Bytes of one weight's quantization constants as bitsandbytes keeps them: absmax, code table, and with double
    quantization the second absmax, its code table and the offset."""
    total = int(state.absmax.nbytes + state.code.nbytes)
    if state.nested:
        total += int(state.state2.absmax.nbytes + state.state2.code.nbytes + state.offset.nbytes)
    return total


class OddLinear4bit(Linear4bit):
    """A 4-bit layer whose rows are not whole blocks, on the CPU: the same product, read right (see `dequantized`)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inputs = x if self.compute_dtype is None else x.to(self.compute_dtype)
        out: torch.Tensor = _Times.apply(inputs, self.weight)
        bias = None if self.bias is None else self.bias.to(out.dtype)
        return (out if bias is None else out + bias).to(x.dtype)


class _Times(torch.autograd.Function):
    """The product with a frozen 4-bit weight (out, in); backward dequantizes it again and keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any) -> torch.Tensor:
        ctx.weight = weight
        return torch.nn.functional.linear(x, dequantized(weight.data, weight.quant_state).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        return grad @ dequantized(ctx.weight.data, ctx.weight.quant_state).to(grad.dtype), None
