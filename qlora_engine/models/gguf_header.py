"""Reads the header of a GGUF file: metadata and tensor shapes, in milliseconds. Torch- and numpy-free.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). The gguf package's
own reader makes an array of every token and takes seconds.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine.errors import EngineError

LONG_ARRAY = 1024
DEEPEST_ARRAY = 8
SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
STRING, ARRAY = 8, 9
# ggml type -> (elements, bytes) of one block; types not listed are not checked against the file's size.
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136), 30: (1, 2),
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """`shape` as torch orders it; `kind` is ggml's number of the type; `offset` from the start of the data."""

    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """0 for a type whose size is not known here."""
        block, size = BLOCKS.get(self.kind, (1, 0))
        return self.elements // block * size


@dataclass(frozen=True)
class GgufHeader:
    """`fields`: metadata; arrays of more than `LONG_ARRAY` items and all token lists are given as their length."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    data_start: int


def read_header(file: Path) -> GgufHeader:
    """The header, checked against the file's size.

    Raises:
        EngineError: not a GGUF file, of an unknown version, or cut short.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Cursor(data).header()
            size = len(data)
    except (ValueError, OSError, struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise EngineError(
            "model.damaged", f"{file.name} is not a whole GGUF file: {error}", "download it again"
        ) from error
    ends = [header.data_start + t.offset + t.nbytes for t in header.tensors.values()]
    needed = max(ends, default=0)
    if needed > size:
        raise EngineError(
            "model.truncated",
            f"{file.name} is cut short: {size} bytes, and its header needs at least {needed}",
            "download it again",
        )
    return header


class _Cursor:
    """Walks over the bytes of a header."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def header(self) -> GgufHeader:
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version = self._number("<I")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not known")
        tensors, entries = self._count("<Q"), self._count("<Q")
        fields = dict(self._entry() for _ in range(entries))
        shapes = dict(self._tensor() for _ in range(tensors))
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError("its alignment is impossible")
        return GgufHeader(fields, shapes, -(-self._at // alignment) * alignment)

    def _entry(self) -> tuple[str, Any]:
        return self._text(), self._value(self._number("<I"))

    def _tensor(self) -> tuple[str, GgufTensor]:
        name, rank = self._text(), self._number("<I")
        if rank > 8:
            raise ValueError(f"a tensor of {rank} dimensions")
        sides = [self._number("<Q") for _ in range(rank)]
        return name, GgufTensor(tuple(reversed(sides)), self._number("<I"), self._number("<Q"))

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self._text()
        if kind == ARRAY:
            return self._array(depth + 1)
        if kind not in SCALARS:
            raise ValueError(f"metadata of type {kind}")
        return self._number(SCALARS[kind])

    def _array(self, depth: int) -> Any:
        if depth > DEEPEST_ARRAY:
            raise ValueError(f"its metadata is nested more than {DEEPEST_ARRAY} levels deep")
        kind, length = self._number("<I"), self._count("<Q")
        if kind in SCALARS and length > LONG_ARRAY:
            self._skip(struct.calcsize(SCALARS[kind]) * length)
            return length
        if kind == STRING:
            for _ in range(length):
                self._skip(self._number("<Q"))
            return length
        return [self._value(kind, depth) for _ in range(length)]

    def _text(self) -> str:
        length, start = self._number("<Q"), self._at
        self._skip(length)
        return self._data[start : self._at].decode("utf-8")

    def _count(self, form: str) -> int:
        """A number of items, each at least one byte: more than the file's bytes cannot be."""
        count = int(self._number(form))
        if count > len(self._data):
            raise ValueError("it announces more entries than it has bytes")
        return count

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise ValueError("it ends inside its header")
