"""Merged weights quantized again, as the checkpoint that transformers loads with bitsandbytes. Imports torch.

Quantizing again rounds the adapter too (CORRECTNESS 2): the export says so, and its proof by how much. Names of the stored
constants: bitsandbytes, functional.py, QuantState.as_dict; transformers reads them in integrations/bitsandbytes.py.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from qlora_engine import parsing
from qlora_engine.errors import EngineError
from qlora_engine.export.merge import DTYPES, Merge, Rows
from qlora_engine.export.nf4 import NESTED_BLOCK, Packed, Quantizer
from qlora_engine.export.pieces import Piece, of_tensor
from qlora_engine.export.stream import Layout
from qlora_engine.export.weights import Weights
from qlora_engine.models.four_bit import BLOCK

STATE_BYTES = 512
"""The state's JSON is filled up with spaces: the place of every tensor is known before the first one is made."""
CODE_4BIT, CODE_8BIT = 16, 256


@dataclass(frozen=True)
class Requantized:
    """Modules of `quantized` in NF4 with double quantization, everything else as `dtype`."""

    merge: Merge
    quantized: frozenset[str]
    dtype: torch.dtype

    def layout_of(self, name: str) -> Layout:
        shape = self.merge.base.shape(name)
        if name.removesuffix(".weight") not in self.quantized:
            return {name: (self.dtype, shape)}
        return {_stored(name, part): found for part, found in parts_of(shape).items()}

    def pieces_of(self, name: str) -> Iterator[Piece]:
        shape = self.merge.base.shape(name)
        if name.removesuffix(".weight") not in self.quantized:
            yield from self.merge.pieces_of(name, self.dtype)
            return
        weight = _Once(self.merge.rows_of(name), shape, Quantizer("nf4", True, self.dtype))
        parts = parts_of(shape)
        for part, (dtype, sizes) in parts.items():
            nbytes = dtype.itemsize * math.prod(sizes)
            yield Piece(nbytes, partial(weight.part, part), ends=part == list(parts)[-1])


def require_whole_blocks(base: Weights, quantized: frozenset[str]) -> None:
    """Rows must be whole blocks: of others bitsandbytes 0.50 on the CPU reads wrong constants, so nothing could be proven.

    Raises:
        EngineError: with the layer.
    """
    for module in sorted(quantized):
        width = math.prod(base.shape(f"{module}.weight")[1:])
        if width % BLOCK:
            raise EngineError(
                "export.bnb4_rows", f"the rows of {module} have {width} weights, which is no multiple of {BLOCK}",
                "export it as a merged model",
            )  # fmt: skip


def quantization_config(dtype: str, others: Sequence[str]) -> dict[str, Any]:
    """What `config.json` says of the quantization; `dtype` is ours, `others` are the linear layers that are not quantized. Where
    there are more of them than a head, transformers must be told, or it would take them for packed."""
    name = str(DTYPES[dtype]).removeprefix("torch.")
    told = {"llm_int8_skip_modules": list(others)} if len(others) > 1 else {}
    return told | {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": name, "bnb_4bit_quant_storage": "uint8",
    }  # fmt: skip


def nbytes_of(layouts: Mapping[str, Layout]) -> int:
    """Bytes of all tensors."""
    return sum(
        dtype.itemsize * math.prod(shape) for layout in layouts.values() for dtype, shape in layout.values()
    )


def parts_of(shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The tensors that a quantized weight of `shape` is stored as: the weight itself under no name."""
    numbers = math.prod(shape)
    blocks = -(-numbers // BLOCK)
    return {
        "": (torch.uint8, (-(-numbers // 2), 1)),
        "absmax": (torch.uint8, (blocks,)),
        "quant_map": (torch.float32, (CODE_4BIT,)),
        "nested_absmax": (torch.float32, (-(-blocks // NESTED_BLOCK),)),
        "nested_quant_map": (torch.float32, (CODE_8BIT,)),
        "quant_state.bitsandbytes__nf4": (torch.uint8, (STATE_BYTES,)),
    }


class _Once:
    """One weight, quantized when its first part is asked for. Thread-safe."""

    def __init__(self, rows: Rows, shape: tuple[int, ...], quantizer: Quantizer) -> None:
        self._rows, self._shape, self._quantizer = rows, shape, quantizer
        self._lock = threading.Lock()
        self._tensors: dict[str, torch.Tensor] = {}

    def part(self, name: str) -> memoryview:
        with self._lock:
            if not self._tensors:
                self._tensors = _tensors(self._quantizer.pack(self._shape, self._merged))
        return of_tensor(self._tensors.pop(name))

    def _merged(self, start: int, stop: int) -> torch.Tensor:
        return self._rows(start, stop, torch.float32)


def _tensors(packed: Packed) -> dict[str, torch.Tensor]:
    """The parts as bitsandbytes itself would save them."""
    stored: dict[str, torch.Tensor] = packed.state.as_dict(packed=True)
    name = "quant_state.bitsandbytes__nf4"
    said = parsing.from_json(bytes(stored[name].tolist()))
    text = json.dumps(said).encode().ljust(STATE_BYTES)
    assert len(text) == STATE_BYTES
    return {"": packed.data, **stored, name: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def _stored(name: str, part: str) -> str:
    return f"{name}.{part}" if part else name
