"""Experts of a base as the 4-bit model computes with them: each quantized alone, however the files cut it. Imports torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from qlora_engine.export.nf4 import Quantizer
from qlora_engine.export.weights import Weights
from qlora_engine.models.names import Place


class ExpertTrip:
    """One tensor of the files. `siblings` are those of the same parameter, itself among them. Thread-safe."""

    def __init__(
        self, base: Weights, key: str, siblings: Sequence[tuple[str, Place]], quantizer: Quantizer
    ) -> None:
        self._base, self._key, self._quantizer = base, key, quantizer
        self._place = dict(siblings)[key]
        parts = [(place.start, name) for name, place in siblings if place.expert == self._place.expert]
        self._parts = [name for _, name in sorted(parts)]
        self._lock = threading.Lock()
        self._whole: torch.Tensor | None = None

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows of it, or experts where the files keep them together."""
        if self._place.expert is None:
            experts = self._base.rows(self._key, start, stop)
            return torch.stack([self._quantizer.round_trip(one) for one in experts])
        with self._lock:
            if self._whole is None:
                whole = [self._base.rows(name, 0, self._base.shape(name)[0]) for name in self._parts]
                self._whole = self._quantizer.round_trip(torch.cat(whole))
        return self._whole[self._place.start + start : self._place.start + stop]
