"""Merges an adapter into its base, some rows at a time, shard by shard. Imports torch.

The delta is added in fp32 and stored in 16 bits (CORRECTNESS 4). Two honest merges exist: into the original weights,
or into the dequantized 4-bit weights the adapter was trained against (CORRECTNESS 3). Nothing is quantized again here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Protocol

import torch

from qlora_engine.control import Control
from qlora_engine.export.deltas import Change, Delta, read_deltas, scaling_of
from qlora_engine.export.expert_trip import ExpertTrip
from qlora_engine.export.journal import Journal
from qlora_engine.export.nf4 import Quantizer, RoundTrip, whole_blocks
from qlora_engine.export.pieces import Piece, of_bytes, of_tensor, row_spans
from qlora_engine.export.stream import Layout, header_of, write_pieces
from qlora_engine.export.weights import Weights
from qlora_engine.export.whole_trip import WholeTrip
from qlora_engine.models.files import INDEX_FILE
from qlora_engine.models.names import Place

__all__ = [
    "DTYPES",
    "INTO",
    "AsFloats",
    "Delta",
    "Merge",
    "Quantizer",
    "read_deltas",
    "scaling_of",
    "write_safetensors",
]

Report = Callable[[str, int, int | None, str], None]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
INTO = ("original", "dequantized")


@dataclass(frozen=True)
class Merge:
    """A base with an adapter in it. With `quantizer`, every module of `quantized` is first brought to what the 4-bit base
    computes with."""

    base: Weights
    deltas: Mapping[str, Change]
    quantizer: Quantizer | None = None
    quantized: frozenset[str] = frozenset()
    experts: Mapping[str, Sequence[tuple[str, Place]]] = field(default_factory=dict)
    """Of a base whose experts were in 4 bits: each of their tensors, with all of the same stack."""
    whole: Mapping[str, Callable[[torch.Tensor, Quantizer], torch.Tensor]] = field(default_factory=dict)
    """Tensors that go to 4 bits and back in a way of their own (export.whole_trip)."""

    def rows_of(self, name: str) -> Rows:
        """A function that gives rows of a merged weight as a type. Safe from several threads."""
        module = name.removesuffix(".weight")
        delta = self.deltas.get(module)
        stored: Callable[[int, int], torch.Tensor]
        if self.quantizer is not None and module in self.whole:
            stored = WholeTrip(self.base, name, self.quantizer, self.whole[module]).rows
        elif self.quantizer is not None and module in self.quantized:
            stored = RoundTrip(self.base, name, self.quantizer).rows
        elif self.quantizer is not None and module in self.experts:
            stored = ExpertTrip(self.base, name, self.experts[module], self.quantizer).rows
        else:
            stored = partial(self.base.rows, name)

        def rows(start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
            weight = stored(start, stop)
            return weight.to(dtype) if delta is None else delta.merged_into(weight, dtype, start)

        return rows

    def pieces_of(self, name: str, dtype: torch.dtype) -> Iterator[Piece]:
        """The merged weight as pieces of a file."""
        shape, rows = self.base.shape(name), self.rows_of(name)
        spans = row_spans(shape, whole_blocks(shape))
        for start, stop in spans:
            nbytes = (stop - start) * math.prod(shape[1:]) * dtype.itemsize
            yield Piece(
                nbytes,
                lambda start=start, stop=stop: of_tensor(rows(start, stop, dtype)),  # type: ignore[misc]
                ends=(start, stop) == spans[-1],
            )


class Rows(Protocol):
    """Rows `start` to `stop` of one weight as `dtype`."""

    def __call__(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor: ...


class Plan(Protocol):
    """How the tensors of a safetensors export are stored: what one of the base becomes."""

    def layout_of(self, name: str) -> Layout:
        """The tensors of the file that the base's `name` becomes, in order."""
        ...

    def pieces_of(self, name: str) -> Iterator[Piece]:
        """Their bytes, one after the other."""
        ...


@dataclass(frozen=True)
class AsFloats:
    """Every weight as one floating-point type."""

    merge: Merge
    dtype: torch.dtype

    def layout_of(self, name: str) -> Layout:
        return {name: (self.dtype, self.merge.base.shape(name))}

    def pieces_of(self, name: str) -> Iterator[Piece]:
        return self.merge.pieces_of(name, self.dtype)


def write_safetensors(plan: Plan, base: Weights, journal: Journal, control: Control, report: Report) -> None:
    """Write a model into the journal's folder, in the base's own shards, with their index.

    Raises:
        OSError: the disk is full, or the base is gone.
        Cancelled: asked to stop.
    """
    done = 0

    def told(piece: Piece) -> None:
        nonlocal done
        if piece.ends:
            done += 1
            report("exporting", done, len(base.headers), "tensors")

    shards: dict[str, list[str]] = {}
    for name, header in base.headers.items():
        shards.setdefault(header.file, []).append(name)
    places, total = {}, 0
    for file, names in shards.items():
        layout = {key: value for name in names for key, value in plan.layout_of(name).items()}
        places.update(dict.fromkeys(layout, file))
        total += sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())
        pieces = chain([of_bytes(header_of(layout))], (p for name in names for p in plan.pieces_of(name)))
        write_pieces(journal.folder / file, pieces, journal, control, told)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (journal.folder / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")
