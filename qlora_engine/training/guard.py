"""Watches that every adapter really learns: after the first step with a rate above 0 each B matrix must have changed.

Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from qlora_engine.errors import EngineError
from qlora_engine.events import Event, Noticed

NAMED = 3
"""So many are named in a sentence."""


class AdapterGuard:
    """Remembers what B matrices are before the first step; most begin as zeros, of which nothing need be kept."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._is_done = False
        self._before = {name: b.detach().clone() for name, b in _b_matrices(model) if bool(b.any())}

    def after(self, learning_rate: float, is_applied: bool) -> Iterator[Event]:
        """Say once, after the first step that counts, which adapters it left as they were.

        Raises:
            EngineError: all of them: gradients do not reach the adapters.
        """
        if self._is_done or learning_rate <= 0 or not is_applied:
            return
        self._is_done = True
        matrices = dict(_b_matrices(self._model))
        still = [name for name, b in matrices.items() if not self._has_moved(name, b)]
        self._before.clear()
        if len(still) == len(matrices):
            raise EngineError(
                "training.no_gradient", "the first step changed no adapter: gradients do not reach them",
                "turn gradient checkpointing off, and report this model", is_input_error=False,
            )  # fmt: skip
        if still:
            yield Noticed(
                "warning", "adapters.unmoved",
                f"{len(still)} of {len(matrices)} adapters did not change in the first step: {_listed(still)}. No token "
                "reaches them, or the model does not use them",
                "leave them out of lora.targets if this stays so; a proof of the result names what was never trained",
            )  # fmt: skip
        waiting, total = _experts_waiting(self._model)
        if waiting:
            yield Noticed(
                "info", "adapters.experts",
                f"{waiting} of {total} experts with an adapter received no token in the first step",
            )  # fmt: skip

    def _has_moved(self, name: str, b: torch.Tensor) -> bool:
        before = self._before.get(name)
        return bool(b.any()) if before is None else not torch.equal(before, b.detach())


def _b_matrices(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B." in name:
            yield name, parameter


def _experts_waiting(model: Any) -> tuple[int, int]:
    """Experts whose part of a B matrix is still zero, and all that have one. B: (out, rank x experts), experts innermost."""
    waiting = total = 0
    for module in model.modules():
        experts = getattr(module, "num_experts", 1)
        if not hasattr(module, "parameter_name") or experts < 2:
            continue
        for b in module.lora_B.values():
            reached = (b.weight.detach().reshape(b.weight.shape[0], -1, experts) != 0).any(0).any(0)
            waiting, total = waiting + int((~reached).sum()), total + experts
    return waiting, total


def _listed(names: list[str]) -> str:
    short = [name.removeprefix("base_model.model.").split(".lora_B.")[0] for name in names]
    rest = len(short) - NAMED
    return ", ".join(short[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
