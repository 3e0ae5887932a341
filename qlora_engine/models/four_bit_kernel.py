"""Quantizes to 4 bits on the CPU with the bits that bitsandbytes gives, in a fraction of its time. Imports torch.

bitsandbytes 0.50 has no kernel of its own for that: it has torch search each weight's place among the 15 bounds, which is most of
what loading a model takes. Here -1 to 1 is cut into cells so narrow that none has two bounds: the cell says how many
bounds lie before it, and one comparison whether the weight is beyond the bound in it.
"""

from __future__ import annotations

import torch
from bitsandbytes._ops import register_kernel
from bitsandbytes.backends.utils import _get_4bit_code

NAME = "bitsandbytes::quantize_4bit"
ELEMENTS = 2**16
"""Weights that are looked at together: they stay in the processor's cache."""
CELLS = 1024
SMALLEST = 1e-38
"""Of what is divided by: a block of zeros has no scale."""


def install() -> None:
    """Let bitsandbytes use it, unless it brings a kernel for the CPU."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(NAME, "CPU"):
        register_kernel(NAME, "cpu")(quantize_4bit)


def quantize_4bit(
    weights: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(packed as `quant_storage`, one column; fp32 factor of each block), of any shape, the last block as long as it comes."""
    flat, count = weights.reshape(-1), weights.numel()
    whole = count - count % blocksize
    codes = torch.empty(count + count % 2, dtype=torch.uint8)
    factors = torch.empty(-(-count // blocksize), dtype=torch.float32)
    cells = _Cells(quant_type)
    size = max(ELEMENTS // blocksize, 1) * blocksize
    for start in range(0, whole, size):
        blocks = flat[start : min(start + size, whole)].float().view(-1, blocksize)
        largest = factors[start // blocksize :][: blocks.shape[0]]
        torch.amax(blocks.abs(), -1, out=largest)
        scaled = (blocks * (1.0 / largest.clamp(min=SMALLEST)).view(-1, 1)).clamp_(-1, 1)
        codes[start : start + blocks.numel()] = cells.places(scaled.view(-1))
    if count > whole:
        rest = flat[whole:].float()
        factors[-1] = rest.abs().max().clamp(min=SMALLEST)
        codes[whole:count] = cells.places((rest / factors[-1]).clamp_(-1, 1))
    if count % 2:
        codes[count:] = cells.places(torch.zeros(1))
    codes = codes if cells.order is None else cells.order[codes.int()]
    packed = codes[::2].bitwise_left_shift(4).bitwise_or_(codes[1::2])
    return packed.view(quant_storage).unsqueeze(1), factors


class _Cells:
    """`before` (CELLS + 1): bounds in earlier cells; `bound`: the one in the cell, or one that nothing is beyond. `order`: the codes
    in the order of their values, None where it is their own."""

    def __init__(self, quant_type: str) -> None:
        code = _get_4bit_code(quant_type, torch.device("cpu"))
        order = torch.argsort(code)
        bounds = (code[order[:-1]] + code[order[1:]]) / 2
        self.order = None if quant_type == "nf4" else order.to(torch.uint8)
        held = self._of(bounds)
        self._bound = torch.full((CELLS + 1,), torch.inf).index_copy_(0, held.long(), bounds)
        self._before = torch.searchsorted(held, torch.arange(CELLS + 1, dtype=torch.int32)).float()

    def places(self, values: torch.Tensor) -> torch.Tensor:
        """How many bounds each of `values` (between -1 and 1) is beyond, uint8. What is no number is beyond all, as in torch.bucketize."""
        cell = self._of(values)
        is_beyond = torch.gt(values, self._bound.index_select(0, cell), out=torch.empty_like(values))
        return self._before.index_select(0, cell).add_(is_beyond).to(torch.uint8)

    @staticmethod
    def _of(values: torch.Tensor) -> torch.Tensor:
        """The same for equal values and never smaller for a larger one: rounding moves bounds and values alike."""
        return values.mul(CELLS / 2).add_(CELLS / 2).nan_to_num_(CELLS).to(torch.int32)
