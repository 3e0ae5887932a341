"""Writes a safetensors file tensor by tensor: the layout is known before any weight is. Imports torch.

Format: https://github.com/huggingface/safetensors#format: the header's length in 8 bytes, the header in JSON, the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
ALIGNMENT = 8


def save_file(
    tensors: Iterable[tuple[str, torch.Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    path: Path,
) -> None:
    """Write `tensors`, which come in the order of `shapes`, as `dtype`. Each may be freed when the next is asked for.

    Raises:
        OSError: the disk is full or may not be written.
    """
    with path.open("wb") as stream:
        stream.write(_header(shapes, dtype))
        for (name, tensor), (expected, shape) in zip(tensors, shapes.items(), strict=True):
            assert (name, tuple(tensor.shape)) == (expected, shape)
            stored = tensor.to(dtype).contiguous()
            stream.write(memoryview(stored.reshape(-1).view(torch.uint8).numpy()))


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
