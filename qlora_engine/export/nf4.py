"""4-bit quantization of one large weight, some rows at a time, equal to bitsandbytes' own of the whole. Imports torch.

Blocks of 64 weights are quantized on their own; the second quantization takes all their constants together (QLoRA, arXiv
2305.14314, section 3), so those, one number per 64 weights, are gathered first.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from qlora_engine.export.pieces import row_spans
from qlora_engine.export.weights import Weights
from qlora_engine.models.four_bit import BLOCK, dequantized

NESTED_BLOCK = 256


@dataclass(frozen=True)
class Quantizer:
    """How weights are quantized: type, nesting and the type they are quantized from and computed with."""

    quant_type: str
    is_double_quant: bool
    compute_dtype: torch.dtype

    def round_trip(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight` as the run saw it: quantized and dequantized."""
        from bitsandbytes import functional

        packed, state = functional.quantize_4bit(
            weight.to(self.compute_dtype),
            blocksize=BLOCK,
            compress_statistics=self.is_double_quant,
            quant_type=self.quant_type,
        )
        return dequantized(packed, state)

    def pack(self, shape: tuple[int, ...], rows: Callable[[int, int], torch.Tensor]) -> Packed:
        """Quantize a weight of `shape` whose rows `rows(start, stop)` gives, some at a time."""
        from bitsandbytes import functional

        packed, absmax = [], []
        for start, stop in row_spans(shape, whole_blocks(shape)):
            part, state = functional.quantize_4bit(
                rows(start, stop), blocksize=BLOCK, compress_statistics=False, quant_type=self.quant_type
            )
            packed.append(part)
            absmax.append(state.absmax)
        constants, nested, offset = torch.cat(absmax), None, None
        if self.is_double_quant:
            offset = constants.mean()
            constants, nested = functional.quantize_blockwise(constants - offset, blocksize=NESTED_BLOCK)
        whole = functional.QuantState(
            absmax=constants, shape=torch.Size(shape), code=functional.get_4bit_type(self.quant_type, "cpu"),
            blocksize=BLOCK, quant_type=self.quant_type, dtype=self.compute_dtype, offset=offset, state2=nested,
        )  # fmt: skip
        return Packed(torch.cat(packed), whole)


@dataclass(frozen=True)
class Packed:
    """A quantized weight: two 4-bit numbers per byte, (numbers / 2, 1), and bitsandbytes' state."""

    data: torch.Tensor
    state: Any

    def constants(self) -> torch.Tensor:
        """One fp32 factor per block."""
        from bitsandbytes import functional

        if not self.state.nested:
            return self.state.absmax.float()
        return functional.dequantize_blockwise(self.state.absmax, self.state.state2) + self.state.offset

    def rows(self, start: int, stop: int, constants: torch.Tensor) -> torch.Tensor:
        """Rows of it dequantized; they begin and end with whole blocks, or the weight does."""
        from bitsandbytes import functional

        width = math.prod(self.state.shape[1:])
        state = functional.QuantState(
            absmax=constants[start * width // BLOCK : -(-stop * width // BLOCK)],
            shape=torch.Size((stop - start, *self.state.shape[1:])), code=self.state.code, blocksize=BLOCK,
            quant_type=self.state.quant_type, dtype=self.state.dtype,
        )  # fmt: skip
        return dequantized(self.data[start * width // 2 : -(-stop * width // 2)], state)


class RoundTrip:
    """One of a base's weights as the 4-bit model computes with it. Quantized when first asked for; thread-safe."""

    def __init__(self, base: Weights, name: str, quantizer: Quantizer) -> None:
        self._base, self._name, self._quantizer = base, name, quantizer
        self._lock = threading.Lock()
        self._packed: Packed | None = None
        self._constants = torch.empty(0)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        with self._lock:
            if self._packed is None:
                self._packed = self._quantizer.pack(self._base.shape(self._name), self._stored)
                self._constants = self._packed.constants()
        return self._packed.rows(start, stop, self._constants)

    def _stored(self, start: int, stop: int) -> torch.Tensor:
        return self._base.rows(self._name, start, stop).to(self._quantizer.compute_dtype)


def whole_blocks(shape: tuple[int, ...]) -> int:
    """So many rows are a whole number of blocks."""
    return BLOCK // math.gcd(BLOCK, math.prod(shape[1:]))
