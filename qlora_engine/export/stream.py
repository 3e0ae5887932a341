"""Writes a large file piece by piece: hashed on the way, flushed and marked in the journal, gone on with after a break.

Imports torch. Safetensors: https://github.com/huggingface/safetensors#format: the header's length in 8 bytes, the header in
JSON, the data.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from qlora_engine.control import Control
from qlora_engine.export.journal import Journal
from qlora_engine.export.pieces import Piece, in_order

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}
ALIGNMENT = 8
MARK_BYTES = 512 << 20
"""So much is lost at the most when the machine goes down."""
UNHASHED = 32
"""So many pieces may wait to be hashed."""

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Tensor name -> type and shape, in the order of the file."""


def write_pieces(
    file: Path, pieces: Iterable[Piece], journal: Journal, control: Control, told: Callable[[Piece], None]
) -> None:
    """Write `pieces` one after the other, from where the journal says that the file is certain. `told` hears of each.

    Raises:
        OSError: the disk is full or may not be written; a base's file is gone.
        Cancelled: asked to stop.
    """
    start, hasher = journal.start_of(file.name)
    with _opened_at(file, start) as stream:
        marker = _Marker(stream, file.name, start, hasher, journal)
        try:
            for piece, data in in_order(_rest(pieces, start, told), control):
                _write_all(stream, data)
                marker.take(data)
                told(piece)
        finally:
            marker.close()


def header_of(layout: Layout, metadata: Mapping[str, str] | None = None) -> bytes:
    """The start of a safetensors file, up to its first value."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for name, (dtype, shape) in layout.items():
        end = at + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


@contextlib.contextmanager
def _opened_at(file: Path, start: int) -> Iterator[FileIO]:
    with file.open("r+b" if start else "wb", buffering=0) as stream:
        stream.truncate(start)
        stream.seek(start)
        yield stream


def _rest(pieces: Iterable[Piece], start: int, told: Callable[[Piece], None]) -> Iterator[Piece]:
    """The pieces after byte `start`, which is where one of them ends."""
    at = 0
    for piece in pieces:
        at += piece.nbytes
        if at > start:
            yield piece
        else:
            told(piece)


def _write_all(stream: FileIO, data: memoryview) -> None:
    while data.nbytes:
        written = stream.write(data)
        data = data[written or 0 :]


class _Marker:
    """Hashes what was written in a thread of its own, flushes, and marks how far the file is certain."""

    def __init__(self, stream: FileIO, name: str, start: int, hasher: Any, journal: Journal) -> None:
        self._stream, self._name, self._journal, self._hasher = stream, name, journal, hasher
        self._nbytes = self._marked = start
        self._todo: queue.Queue[memoryview | None] = queue.Queue(UNHASHED)
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="hash", daemon=True)
        self._thread.start()

    def take(self, data: memoryview) -> None:
        """Hash these bytes, which have been written.

        Raises:
            OSError: an earlier flush failed.
        """
        if self._error is not None:
            raise self._error
        self._todo.put(data)

    def close(self) -> None:
        """Mark all that was written.

        Raises:
            OSError: it could not be flushed.
        """
        self._todo.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (data := self._todo.get()) is not None:
            self._hasher.update(data)
            self._nbytes += data.nbytes
            if self._nbytes - self._marked >= MARK_BYTES:
                self._mark()
        if self._nbytes > self._marked:
            self._mark()

    def _mark(self) -> None:
        if self._error is not None:
            return
        try:
            os.fsync(self._stream.fileno())
            self._journal.mark(self._name, self._nbytes, self._hasher.hexdigest())
            self._marked = self._nbytes
        except OSError as error:
            self._error = error
