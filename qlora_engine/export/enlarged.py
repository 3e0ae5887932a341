"""A base's weights with the rows that a run added to its embeddings. Imports the ML stack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qlora_engine.export.deltas import PREFIX
from qlora_engine.export.weights import Weights
from qlora_engine.models import names, new_rows


@dataclass(frozen=True)
class EnlargedWeights(Weights):
    """`new`: name of a stored tensor -> the rows (n, width) that come behind its own, fp32."""

    new: Mapping[str, torch.Tensor]

    def shape(self, name: str) -> tuple[int, ...]:
        rows, *rest = super().shape(name) or (0,)
        return (rows + len(self.new[name]), *rest) if name in self.new else super().shape(name)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop`, in fp32 where new ones are among them."""
        if name not in self.new:
            return super().rows(name, start, stop)
        old = super().shape(name)[0]
        new = self.new[name][max(0, start - old) : max(0, stop - old)]
        if start >= old:
            return new
        return torch.cat([super().rows(name, start, min(stop, old)), new])


def weights_of(base: Path, adapter_dir: Path) -> Weights:
    """The weights of `base` as the adapter was trained on them.

    Raises:
        EngineError: as `Weights.of`.
    """
    plain = Weights.of(base)
    new = trained_rows(adapter_dir)
    return EnlargedWeights(plain.folder, plain.headers, _by_file(base, new)) if new else plain


def trained_rows(adapter_dir: Path) -> dict[str, torch.Tensor]:
    """Parameter of the base -> the rows that the adapter adds to it, fp32; empty for most."""
    return new_rows.of_file(load_file(adapter_dir / "adapter_model.safetensors"), PREFIX)


def put_into(model: Any, rows: Mapping[str, torch.Tensor]) -> None:
    """Enlarge the tables of a plain `model` and write the trained rows there."""
    count = max(map(len, rows.values()), default=0)
    new_rows.grow(model, model.get_input_embeddings().weight.shape[0] + count)
    for name, new in rows.items():
        model.get_parameter(name).data[-len(new) :] = new


def _by_file(base: Path, rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same by the names of the base's files, which may hold a tied head besides."""
    plain = names.skeleton(base)
    every = dict(plain.named_parameters(remove_duplicate=False))
    by_parameter = {
        other: new for name, new in rows.items() for other, p in every.items() if p is every[name]
    }
    places = {key: place.parameter for key, place in names.places(base).items()}
    return {key: by_parameter[name] for key, name in places.items() if name in by_parameter}
