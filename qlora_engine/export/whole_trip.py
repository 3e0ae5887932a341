"""Weights that the files hold otherwise than the layers do, as the 4-bit model computes with them: inputs first, or several
layers in one tensor. Such a tensor is quantized and dequantized whole. Imports the ML stack.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from qlora_engine.export.nf4 import Quantizer
from qlora_engine.export.quantized import quantized_paths
from qlora_engine.export.weights import Weights
from qlora_engine.models import names
from qlora_engine.models.names import Cut

RoundTrip = Callable[[torch.Tensor, Quantizer], torch.Tensor]


class WholeTrip:
    """One tensor of the files. Thread-safe."""

    def __init__(self, base: Weights, key: str, quantizer: Quantizer, trip: RoundTrip) -> None:
        self._base, self._key, self._quantizer, self._trip = base, key, quantizer, trip
        self._lock = threading.Lock()
        self._whole: torch.Tensor | None = None

    def rows(self, start: int, stop: int) -> torch.Tensor:
        with self._lock:
            if self._whole is None:
                stored = self._base.rows(self._key, 0, self._base.shape(self._key)[0])
                self._whole = self._trip(stored, self._quantizer)
        return self._whole[start:stop]


def trips(base: Path) -> dict[str, RoundTrip]:
    """Tensor of the files without `.weight` -> how it goes to 4 bits and back, for those that do not go as they are."""
    in_4_bits = {f"{path}.weight" for path in quantized_paths(base)}
    turned = in_4_bits & {f"{path}.weight" for path in names.transposed(base)}
    found: dict[str, RoundTrip] = {}
    if turned:
        keys = (key for key, place in names.places(base).items() if place.parameter in turned)
        found = {key.removesuffix(".weight"): transposed for key in keys}
    for key, parts in names.cuts(base).items():
        own = [part for part in parts if part.parameter in in_4_bits]
        if own:
            found[key.removesuffix(".weight")] = _of_parts(own)
    return found


def transposed(weight: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
    """A weight that is kept inputs first: its layer quantizes it the other way round."""
    return quantizer.round_trip(weight.T.contiguous()).T.contiguous()


def _of_parts(parts: Sequence[Cut]) -> RoundTrip:
    def trip(weight: torch.Tensor, quantizer: Quantizer) -> torch.Tensor:
        whole = weight.to(quantizer.compute_dtype, copy=True)
        for part in parts:
            rows = slice(part.start, part.start + part.rows)
            whole[rows] = quantizer.round_trip(weight[rows])
        return whole

    return trip
