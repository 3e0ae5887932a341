"""Merges an adapter into its base, some rows at a time, shard by shard. Imports torch.

The delta is added in fp32 and stored in 16 bits (CORRECTNESS 4). Two honest merges exist: into the original weights,
or into the dequantized 4-bit weights the adapter was trained against (CORRECTNESS 3). Nothing is quantized again here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.export.journal import Journal
from qlora_engine.export.nf4 import Quantizer, RoundTrip, whole_blocks
from qlora_engine.export.pieces import Piece, of_bytes, of_tensor, row_spans
from qlora_engine.export.stream import Layout, header_of, write_pieces
from qlora_engine.export.weights import Weights
from qlora_engine.models.files import INDEX_FILE

__all__ = [
    "DTYPES",
    "INTO",
    "AsFloats",
    "Delta",
    "Merge",
    "Quantizer",
    "merged_weight",
    "read_deltas",
    "write_safetensors",
]

Report = Callable[[str, int, int | None, str], None]
PREFIX = "base_model.model."
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
INTO = ("original", "dequantized")
CACHED_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class Delta:
    """One module's adapter. `a` (r, in), `b` (out, r), `magnitude` (out) for DoRA; all fp32."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    magnitude: torch.Tensor | None = None

    def merged_into(
        self, weight: torch.Tensor, dtype: torch.dtype = torch.float32, start: int = 0
    ) -> torch.Tensor:
        """Rows of the weight from `start` on, (rows, in), with the adapter added in fp32, as `dtype`: W + s B A, and for
        DoRA each row scaled to its magnitude (arXiv 2402.09353, equation 5). Some rows at a time, so that the sums stay
        in the processor's cache."""
        merged = torch.empty(weight.shape, dtype=dtype)
        step = max(1, CACHED_ELEMENTS // weight.shape[1])
        for at in range(0, weight.shape[0], step):
            here = weight[at : at + step]
            rows = slice(start + at, start + at + len(here))
            whole = here.to(torch.float32, copy=True).addmm_(self.b[rows], self.a, alpha=self.scaling)
            if self.magnitude is not None:
                whole *= (self.magnitude[rows] / torch.linalg.norm(whole, dim=1)).unsqueeze(1)
            merged[at : at + step] = whole
        return merged


def read_deltas(adapter_dir: Path, adapter_config: Mapping[str, Any]) -> dict[str, Delta]:
    """Module path -> its delta.

    Raises:
        EngineError: a variant whose merge is not known here.
    """
    if adapter_config.get("peft_type") != "LORA" or adapter_config.get("bias", "none") != "none":
        raise EngineError(
            "export.variant", "this adapter is of a kind that is not merged here", "export it as an adapter"
        )
    tensors = load_file(adapter_dir / "adapter_model.safetensors")
    deltas = {}
    for name in [n for n in tensors if n.endswith("lora_A.weight")]:
        module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        stem = name.removesuffix("lora_A.weight")
        magnitude = tensors.get(f"{stem}lora_magnitude_vector")
        if magnitude is None:
            magnitude = tensors.get(f"{stem}lora_magnitude_vector.weight")
        a, b = tensors[name].float(), tensors[f"{stem}lora_B.weight"].float()
        deltas[module] = Delta(
            a, b, scaling_of(adapter_config, a.shape[0]), None if magnitude is None else magnitude.float()
        )
    return deltas


def scaling_of(adapter_config: Mapping[str, Any], rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732)."""
    alpha = float(adapter_config["lora_alpha"])
    return alpha / math.sqrt(rank) if adapter_config.get("use_rslora") else alpha / rank


@dataclass(frozen=True)
class Merge:
    """A base with an adapter in it. With `quantizer`, every module of `quantized` is first brought to what the 4-bit base
    computes with."""

    base: Weights
    deltas: Mapping[str, Delta]
    quantizer: Quantizer | None = None
    quantized: frozenset[str] = frozenset()

    def rows_of(self, name: str) -> Rows:
        """A function that gives rows of a merged weight as a type. Safe from several threads."""
        module = name.removesuffix(".weight")
        delta = self.deltas.get(module)
        stored: Callable[[int, int], torch.Tensor]
        if self.quantizer is not None and module in self.quantized:
            stored = RoundTrip(self.base, name, self.quantizer).rows
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


def require_modules(weights: Iterable[str], deltas: Mapping[str, Delta]) -> None:
    """Every adapted module must be a weight of the base.

    Raises:
        EngineError: with the first that is not.
    """
    known = set(weights)
    missing = [module for module in deltas if f"{module}.weight" not in known]
    if missing:
        raise EngineError(
            "export.module", f"the base has no weight {missing[0]}.weight", "report this model as a bug"
        )


def merged_weight(
    name: str,
    tensor: torch.Tensor,
    deltas: Mapping[str, Delta],
    quantizer: Quantizer | None,
    quantized: frozenset[str],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The stored `tensor` of that name as the merge has it; unchanged where nothing is added."""
    module = name.removesuffix(".weight")
    if quantizer is not None and module in quantized:
        tensor = quantizer.round_trip(tensor)
    delta = deltas.get(module)
    return tensor if delta is None else delta.merged_into(tensor, dtype)
