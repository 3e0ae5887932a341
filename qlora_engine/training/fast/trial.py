"""What a loaded model computes in its plain way, and whether it still does when passes take a faster one. Imports the ML stack.

Short rows of the data: logits of all, and the adapters' gradients over the shorter ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from qlora_engine.data import batches
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.out_of_memory import is_out_of_memory
from qlora_engine.training import loss
from qlora_engine.training.fast import linears, segments

TRIAL_TOKENS = (40, 12, 12)
"""Of each row of the trial: a long one, whose logits are compared, and short ones, whose gradients are too."""
TOLERANCE = {torch.float32: 1e-4}
TOLERANCE_16_BIT = 3e-2
GRADIENT_TOLERANCE = {torch.float32: 1e-3}
GRADIENT_TOLERANCE_16_BIT = 1e-1


@contextlib.contextmanager
def in_mode(model: Any, *, is_training: bool) -> Iterator[None]:
    """While inside; a switch walks through every module, which takes as long as a short pass."""
    before = model.training
    if before == is_training:
        yield
        return
    model.train(is_training)
    try:
        yield
    finally:
        model.train(before)


class Trial:
    """Beginnings of some rows, and what the plain model makes of them. With `tries_each` every change is compared alone."""

    def __init__(self, model: Any, rows: Sequence[TokenRow], device: str) -> None:
        self.model, self.tries_each = model, False
        self._causal, self._device = loss.causal_of(model), device
        self._trained = [p for p in self._causal.parameters() if p.requires_grad]
        self.rows = [_shortened(row, tokens) for row, tokens in zip(rows, TRIAL_TOKENS, strict=False)]
        self.short = self.rows[1:] or [_shortened(self.rows[0], TRIAL_TOKENS[-1])]
        with torch.no_grad():
            long = self.logits(batches.join(self.rows[:1]))
        short, self._gradients = self._short_rows()
        self._wanted = [long, *short][: len(self.rows)]

    def logits(self, batch: batches.Batch) -> torch.Tensor:
        """(tokens of all rows, V), without dropout and random numbers."""
        with in_mode(self._causal, is_training=False):
            return self._causal(**loss.model_inputs(batch.to(self._device))).logits.flatten(0, 1)

    def _short_rows(self) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Logits of each, and gradients over all of them; beside each other in one pass where none must be padded."""
        lengths = [len(row.input_ids) for row in self.short]
        beside = [self.short] if len(set(lengths)) == 1 else [[row] for row in self.short]
        logits = torch.cat([self.logits(batches.collate(group, 0)) for group in beside])
        return list(logits.detach().split(lengths)), self._gradients_of(logits)

    def gradients(self, *, are_joined: bool) -> list[torch.Tensor | None]:
        """Of every adapter, of a sum of logits with weights of their own, over the short rows."""
        if not are_joined:
            return self._short_rows()[1]
        batch = batches.join(self.short)
        with segments.running(batch):
            return self._gradients_of(self.logits(batch))

    def _gradients_of(self, logits: torch.Tensor) -> list[torch.Tensor | None]:
        total = logits.float().mul(_weights_like(logits)).sum()
        return _gradients_of(total, self._trained)

    def group(self, sites: Sequence[linears.Site]) -> None:
        """See which of them read the same tensor."""
        first = batches.join(self.short[:1])
        with torch.no_grad():
            linears.group_by_input(sites, lambda: self.logits(first))

    def differs(self, *, are_joined: bool) -> str | None:
        """Why logits or gradients are no longer what they were, None where they are."""
        differs = self._joined_logits_differ if are_joined else self._logits_differ
        return differs() or self.differs_in_gradients(are_joined=are_joined)

    def differs_in_gradients(self, *, are_joined: bool) -> str | None:
        """Why the adapters would be taught something else; None where they are not."""
        found = self.gradients(are_joined=are_joined)
        return gradient_problem(found, self._gradients, self._wanted[0].dtype)

    def differs_alone(self) -> str | None:
        """Why the model is no longer what it was, None where it is, or where all changes are compared together later."""
        return self._logits_differ() if self.tries_each else None

    def differs_joined(self) -> str | None:
        """Why rows end to end are not computed as each alone; None as above."""
        return self._joined_logits_differ() if self.tries_each else None

    def _logits_differ(self) -> str | None:
        with torch.no_grad():
            return _difference([self.logits(batches.join([row])) for row in self.rows], self._wanted)

    def _joined_logits_differ(self) -> str | None:
        batch = batches.join(self.rows)
        with segments.running(batch), torch.no_grad():
            found = self.logits(batch).split([len(row.input_ids) for row in self.rows])
        return _difference(list(found), self._wanted)

    def train_joined(self) -> None:
        """One pass as training makes it: attention that drops weights only then says here that it cannot follow."""
        batch = batches.join(self.short).to(self._device)
        devices = [torch.cuda.current_device()] if self._device == "cuda" else []
        as_trained = in_mode(self._causal, is_training=True)
        with as_trained, torch.random.fork_rng(devices), torch.no_grad(), segments.running(batch):
            self._causal(**loss.model_inputs(batch))


class Remembered:
    """In place of a trial: what one found before of the same base, settings, machine and program, and did not object to."""

    tries_each = False

    def __init__(self, model: Any, known: Mapping[str, Any]) -> None:
        self.model, self._groups = model, known["groups"]

    def group(self, sites: Sequence[linears.Site]) -> None:
        linears.regroup(sites, self._groups)

    def differs_alone(self) -> str | None:
        return None

    def differs_joined(self) -> str | None:
        return None

    def train_joined(self) -> None:
        """It could."""


def _weights_like(logits: torch.Tensor) -> torch.Tensor:
    """(V,) between -1 and 1."""
    return torch.linspace(-1.0, 1.0, logits.shape[-1], device=logits.device)


def _gradients_of(total: torch.Tensor, trained: list[Any]) -> list[torch.Tensor | None]:
    return list(torch.autograd.grad(total, trained, allow_unused=True)) if trained else []


def gradient_problem(
    found: Sequence[torch.Tensor | None], wanted: Sequence[torch.Tensor | None], dtype: torch.dtype
) -> str | None:
    """Why gradients of a model that computes in `dtype` are not those that are `wanted`; None where they are."""
    worst = _furthest(found, wanted)
    allowed = GRADIENT_TOLERANCE.get(dtype, GRADIENT_TOLERANCE_16_BIT)
    return None if worst <= allowed else f"gradients differ by {worst:.1e}"


def _furthest(found: Sequence[torch.Tensor | None], wanted: Sequence[torch.Tensor | None]) -> float:
    """The largest distance, as a share of the longest gradient: a short one is made of what nearly cancels out."""
    if [g is None for g in found] != [g is None for g in wanted]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if a is not None and b is not None]
    longest = max((float(b.norm()) for _, b in pairs), default=0.0)
    return max((float((a - b).norm()) / max(longest, 1e-12) for a, b in pairs), default=0.0)


def _shortened(row: TokenRow, tokens: int) -> TokenRow:
    """The row's beginning as one row of its own: packed rows in it follow each other as if they were text."""
    ids = row.input_ids[:tokens]
    return TokenRow(ids, row.trained[: len(ids)], row.source_row, lengths=(len(ids),))


def _difference(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> str | None:
    tolerance = TOLERANCE.get(wanted[0].dtype, TOLERANCE_16_BIT)
    worst = max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(found, wanted, strict=True)
    )
    return None if worst <= tolerance else f"logits differ by {worst:.1e} of the largest"


def reason(check: Callable[[], str | None]) -> str | None:
    """What a trial says, or how it failed: a model's own code raises whatever its author chose."""
    try:
        return check()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        first, second, *_ = [*str(error).strip().splitlines(), "", ""]
        words = (
            f"{first} {second.strip()}" if first.endswith(":") else first
        )  # what a compiler raised is below
        return f"{type(error).__name__}: {words[:120]}"
