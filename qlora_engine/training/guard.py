"""Watches that every adapter really learns: after the first step with a rate above 0 each B matrix must have changed, and each
new row of the embeddings whose token was read.

Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from qlora_engine.data.tokenize import TokenRow
from qlora_engine.errors import EngineError
from qlora_engine.events import Event, Noticed
from qlora_engine.models import new_rows

Rows = Callable[[], Sequence[TokenRow]]
NAMED = 3
"""So many are named in a sentence."""


class AdapterGuard:
    """Remembers what B matrices are before the first step; most begin as zeros, of which nothing need be kept."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._is_done = False
        self._before = {name: b.detach().clone() for name, b in _b_matrices(model) if bool(b.any())}
        self._new = [(first, new, new.detach().clone()) for first, new in new_rows.trained(model)]

    def after(self, learning_rate: float, is_applied: bool, rows: Rows) -> Iterator[Event]:
        """Say once, after the first step that counts, which adapters it left as they were. `rows` gives those of the step.

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
        if self._new:
            yield from self._of_new_rows(_read(rows()))
        waiting, total = _experts_waiting(self._model)
        if waiting:
            yield Noticed(
                "info", "adapters.experts",
                f"{waiting} of {total} experts with an adapter received no token in the first step",
            )  # fmt: skip

    def _of_new_rows(self, read: set[int]) -> Iterator[Event]:
        waiting = 0
        for first, new, before in self._new:
            moved = (new.detach() != before).any(-1).tolist()
            numbers = range(first, first + len(moved))
            waiting = len(set(numbers) - read)
            dead = [n for n, has_moved in zip(numbers, moved, strict=True) if n in read and not has_moved]
            if dead:
                yield Noticed(
                    "warning", "embeddings.unmoved",
                    f"{len(dead)} new rows of the embeddings did not change in the first step, although it read their tokens: "
                    f"{', '.join(map(str, dead[:NAMED]))}",
                    "report this model: gradients do not reach its embeddings",
                )  # fmt: skip
        if waiting:
            yield Noticed(
                "info", "embeddings.waiting",
                f"{waiting} of {len(before)} new rows of the embeddings had no token in the first step",
            )  # fmt: skip
        self._new.clear()

    def _has_moved(self, name: str, b: torch.Tensor) -> bool:
        before = self._before.get(name)
        return bool(b.any()) if before is None else not torch.equal(before, b.detach())


def _b_matrices(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B." in name:
            yield name, parameter


def _read(rows: Sequence[TokenRow]) -> set[int]:
    """The tokens of which something trained comes after: only those teach their embedding."""
    found: set[int] = set()
    for row in rows:
        begin = 0
        for length in row.lengths or (len(row.input_ids),):
            trained = row.trained[begin : begin + length]
            last = max((at for at, is_trained in enumerate(trained) if is_trained), default=0)
            found.update(row.input_ids[begin : begin + last])
            begin += length
    return found


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
