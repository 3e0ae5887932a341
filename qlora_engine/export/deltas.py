"""What an adapter adds to each parameter of its base, and to each tensor of the base's files. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from qlora_engine.errors import EngineError
from qlora_engine.models import names
from qlora_engine.models.packing import headers_of_folder

PREFIX = "base_model.model."
INNER = ".base_layer"
WEIGHT = ".weight"
CACHED_ELEMENTS = 1 << 19


class Change(Protocol):
    """A delta of some weight."""

    @property
    def elements(self) -> int: ...

    def merged_into(
        self, weight: torch.Tensor, dtype: torch.dtype = torch.float32, start: int = 0
    ) -> torch.Tensor:
        """Rows of the weight from `start` on with the adapter added in fp32, as `dtype`."""
        ...


@dataclass(frozen=True)
class Delta:
    """One module's adapter. `a` (r, in), `b` (out, r), `magnitude` (out) for DoRA; all fp32."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    magnitude: torch.Tensor | None = None

    @property
    def elements(self) -> int:
        return self.a.numel() + self.b.numel()

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

    def transposed(self) -> Delta:
        """The same of a weight that is kept inputs first.

        Raises:
            EngineError: DoRA, which scales the outputs, columns there.
        """
        if self.magnitude is not None:
            raise EngineError(
                "export.variant", "DoRA on layers that keep their weights inputs first is not merged here",
                "export it as an adapter",
            )  # fmt: skip
        return Delta(self.b.T.contiguous(), self.a.T.contiguous(), self.scaling)

    def rows_from(self, start: int) -> Delta:
        """The same of a tensor that begins at that row."""
        magnitude = None if self.magnitude is None else self.magnitude[start:]
        return Delta(self.a, self.b[start:], self.scaling, magnitude)


@dataclass(frozen=True)
class StackDelta:
    """The adapters of all experts of a stack, (experts, rows, columns), each of them as a Delta."""

    experts: tuple[Delta, ...]

    @property
    def elements(self) -> int:
        return sum(one.elements for one in self.experts)

    def merged_into(
        self, weight: torch.Tensor, dtype: torch.dtype = torch.float32, start: int = 0
    ) -> torch.Tensor:
        """Experts from `start` on."""
        chosen = self.experts[start : start + len(weight)]
        return torch.stack([one.merged_into(w, dtype) for one, w in zip(chosen, weight, strict=True)])


@dataclass(frozen=True)
class CutDelta:
    """The adapters of several layers that a file keeps in one tensor: (first row, number of rows, delta) of each adapted."""

    parts: tuple[tuple[int, int, Delta], ...]

    @property
    def elements(self) -> int:
        return sum(delta.elements for _, _, delta in self.parts)

    def merged_into(
        self, weight: torch.Tensor, dtype: torch.dtype = torch.float32, start: int = 0
    ) -> torch.Tensor:
        merged, stop = weight.to(dtype, copy=True), start + len(weight)
        for first, rows, delta in self.parts:
            low, high = max(first, start), min(first + rows, stop)
            if low < high:
                here = slice(low - start, high - start)
                merged[here] = delta.merged_into(weight[here], dtype, low - first)
        return merged


def scaling_of(adapter_config: Mapping[str, Any], rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732)."""
    alpha = float(adapter_config["lora_alpha"])
    return alpha / math.sqrt(rank) if adapter_config.get("use_rslora") else alpha / rank


def read_deltas(
    adapter_dir: Path, adapter_config: Mapping[str, Any], base: Path | None = None
) -> dict[str, Change]:
    """Parameter without `.weight` -> what is added to it. `base` is needed where experts are adapted, and where weights are
    kept inputs first.

    Raises:
        EngineError: a variant whose merge is not known here.
    """
    if adapter_config.get("peft_type") != "LORA" or adapter_config.get("bias", "none") != "none":
        raise EngineError(
            "export.variant", "this adapter is of a kind that is not merged here", "export it as an adapter"
        )
    tensors = load_file(adapter_dir / "adapter_model.safetensors")
    stacked = [n for n in adapter_config.get("target_parameters") or () if not n.endswith(WEIGHT)]
    deltas: dict[str, Change] = {}
    for stem in sorted(n.removesuffix("lora_A.weight") for n in tensors if n.endswith("lora_A.weight")):
        module = stem.removeprefix(PREFIX).removesuffix(".")
        wrapped = module.replace(INNER, "")
        stacks = (
            names.stacks_of_wrapper(base, wrapped, stacked)
            if stacked and base and _holds(wrapped, stacked)
            else []
        )
        if stacks:
            depth = module.count(INNER)
            parameter, is_swapped = stacks[len(stacks) - 1 - depth]
            deltas[parameter] = _of_stack(
                tensors, stem, adapter_config, base, parameter, is_swapped=is_swapped
            )
        else:
            deltas[module] = _of_linear(tensors, stem, adapter_config)
    if base is None:
        return deltas
    return {
        k: d.transposed() if isinstance(d, Delta) and k in names.transposed(base) else d
        for k, d in deltas.items()
    }


def _holds(module: str, stacked: list[str]) -> bool:
    owners = {one.rpartition(".")[0] for one in stacked}
    return any(module == owner or module.endswith(f".{owner}") for owner in owners)


def _of_linear(tensors: Mapping[str, torch.Tensor], stem: str, config: Mapping[str, Any]) -> Delta:
    magnitude = tensors.get(f"{stem}lora_magnitude_vector")
    if magnitude is None:
        magnitude = tensors.get(f"{stem}lora_magnitude_vector.weight")
    a, b = tensors[f"{stem}lora_A.weight"].float(), tensors[f"{stem}lora_B.weight"].float()
    return Delta(a, b, scaling_of(config, a.shape[0]), None if magnitude is None else magnitude.float())


def _of_stack(
    tensors: Mapping[str, torch.Tensor], stem: str, config: Mapping[str, Any], base: Path | None, parameter: str,
    *, is_swapped: bool,
) -> StackDelta:  # fmt: skip
    """PEFT keeps A as (experts x rank, in) and B as (out, rank x experts); what it adds is B A, or its transpose where the
    stack is stored (experts, in, out)."""
    assert base is not None
    count = names.skeleton(base).get_parameter(parameter).shape[0]
    a, b = tensors[f"{stem}lora_A.weight"].float(), tensors[f"{stem}lora_B.weight"].float()
    firsts = a.reshape(count, -1, a.shape[-1])
    seconds = b.reshape(b.shape[0], -1, count).permute(2, 0, 1)
    scaling = scaling_of(config, firsts.shape[1])
    pairs = zip(firsts, seconds, strict=True)
    return StackDelta(
        tuple(Delta(a, b, scaling) if is_swapped else Delta(b.T, a.T, scaling) for a, b in pairs)
    )


def on_disk(base: Path, deltas: Mapping[str, Change]) -> dict[str, Change]:
    """The same by the names of the base's files.

    Raises:
        EngineError: a weight that is not there in a way that can be written again.
    """
    by_parameter = {
        key if isinstance(one, StackDelta) else f"{key}{WEIGHT}": one for key, one in deltas.items()
    }
    if set(by_parameter) <= set(headers_of_folder(base)):
        return dict(deltas)
    names.require_stored(base, by_parameter)
    found: dict[str, Change] = {}
    for key, place in names.places(base).items():
        delta = by_parameter.get(place.parameter)
        if delta is None:
            continue
        if place.expert is not None:
            assert isinstance(delta, StackDelta)
            delta = delta.experts[place.expert].rows_from(place.start)
        found[key.removesuffix(WEIGHT)] = delta
    for key, parts in names.cuts(base).items():
        adapted = ((part, by_parameter.get(part.parameter)) for part in parts)
        own = tuple((part.start, part.rows, one) for part, one in adapted if isinstance(one, Delta))
        if own:
            found[key.removesuffix(WEIGHT)] = CutDelta(own)
    return found
