"""Makes the pieces of a large file ahead of the one who writes them, in several threads and in order. Imports torch.

Reading, computing and hashing release the interpreter's lock, so a merge keeps up with the disk.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from qlora_engine.control import Control

PIECE_ELEMENTS = 1 << 21
WORKERS = max(2, min(4, os.cpu_count() or 1))
AHEAD = 2 * WORKERS
"""So many pieces are made or waiting at most: memory does not grow with the model."""


@dataclass(frozen=True)
class Piece:
    """`nbytes` of a file, one after the other. `make` gives them as a flat buffer, called from a worker thread; `ends`: a
    tensor is whole with it."""

    nbytes: int
    make: Callable[[], memoryview]
    ends: bool = False


def of_bytes(data: bytes) -> Piece:
    return Piece(len(data), lambda: memoryview(data))


def of_tensor(tensor: torch.Tensor) -> memoryview:
    """A contiguous tensor's own bytes."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def row_spans(shape: tuple[int, ...], multiple: int = 1) -> list[tuple[int, int]]:
    """Rows of a tensor in spans of about `PIECE_ELEMENTS`, each but the last a whole `multiple` of rows."""
    rows = shape[0] if shape else 1
    width = 1
    for side in shape[1:]:
        width *= side
    step = max(multiple, PIECE_ELEMENTS // max(1, width) // multiple * multiple)
    return [(start, min(rows, start + step)) for start in range(0, rows, step)]


def in_order(pieces: Iterable[Piece], control: Control) -> Iterator[tuple[Piece, memoryview]]:
    """Each piece with its bytes, made ahead by several threads.

    Raises:
        Cancelled: asked to stop.
    """
    waiting: deque[tuple[Piece, Future[memoryview]]] = deque()
    with one_thread_each(), ThreadPoolExecutor(WORKERS, thread_name_prefix="merge") as pool:
        try:
            for piece in pieces:
                control.check()
                waiting.append((piece, pool.submit(piece.make)))
                if len(waiting) >= AHEAD:
                    yield _made(*waiting.popleft())
            while waiting:
                control.check()
                yield _made(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()


def _made(piece: Piece, future: Future[memoryview]) -> tuple[Piece, memoryview]:
    data = future.result()
    assert data.nbytes == piece.nbytes
    return piece, data


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Torch computes in the thread that asks: its own threads would wait for ours, and are slower for small pieces."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
