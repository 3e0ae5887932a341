"""Which faster ways a run takes: each switched by an option, tried on the loaded model, and left out where it differs.

The trial runs short rows of the data through the plain model first, each alone, and compares logits. Imports the ML stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qlora_engine.config import TrainingSettings
from qlora_engine.data import batches
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.training import loss
from qlora_engine.training.fast import elementwise, kept_weights, linears, segments

GIB = 1024**3
TRIAL_ROWS = 3
TRIAL_TOKENS = 64
TOLERANCE = {torch.float32: 1e-4}
TOLERANCE_16_BIT = 3e-2


@dataclass
class FastPaths:
    """What a run computes in a faster way. `why_not` has a reason for each that is switched on and cannot be used."""

    joins_rows: bool = False
    fuses_adapters: bool = False
    fuses_elementwise: bool = False
    kept_bytes: int = 0
    why_not: dict[str, str] = field(default_factory=dict)
    sites: list[linears.Site] = field(default_factory=list)

    def batch(self, rows: Sequence[TokenRow], pad_token_id: int) -> batches.Batch:
        """A micro-batch of `rows`: end to end where the model allows it, else padded."""
        return batches.join(rows) if self.joins_rows else batches.collate(rows, pad_token_id)

    def arranged(self, rows: Sequence[TokenRow]) -> Sequence[TokenRow]:
        """The rows of a step in the order in which its micro-batches take them; padded ones beside their like."""
        return rows if self.joins_rows else batches.by_length(rows)

    def forget(self) -> None:
        """After a pass was abandoned: let go of outputs that nobody will ask for."""
        for site in self.sites:
            site.group.forget()

    def to_json(self) -> dict[str, Any]:
        return {
            "join_rows": self.joins_rows,
            "fused_adapters": self.fuses_adapters,
            "fused_elementwise": self.fuses_elementwise,
            "kept_bytes": self.kept_bytes,
            "why_not": dict(self.why_not),
        }


def install(
    model: Any, settings: TrainingSettings, rows: Sequence[TokenRow], *, device: str, spare_bytes: int
) -> FastPaths:
    """Switch on what `settings` ask for and the trial bears out. `spare_bytes`: memory that nothing else of the run needs."""
    found = FastPaths()
    trial = _Trial(model, rows, device)
    if settings.fused_adapters:
        _fuse_adapters(model, found, trial)
    if settings.fused_elementwise and device == "cpu":
        _fuse_elementwise(model, found, trial)
    if device == "cpu":
        budget = int(settings.kept_weights_gib * GIB)
        found.kept_bytes = kept_weights.keep(model, found.sites, min(budget, spare_bytes))
        if budget and not found.kept_bytes:
            found.why_not["kept_weights_gib"] = "the weights need more memory than is allowed or free"
    if settings.join_rows:
        _join_rows(model, found, trial)
    return found


class _Trial:
    """Short rows of the data, and what the plain model makes of each alone."""

    def __init__(self, model: Any, rows: Sequence[TokenRow], device: str) -> None:
        self._causal, self._device = loss.causal_of(model), device
        self.rows = [_shortened(row) for row in rows[:TRIAL_ROWS]]
        self._wanted = [self.logits(batches.join([row])) for row in self.rows]

    def logits(self, batch: batches.Batch) -> torch.Tensor:
        """(tokens, V), without dropout and random numbers."""
        was_training = self._causal.training
        self._causal.eval()
        try:
            moved = batch.to(self._device)
            with torch.no_grad():
                return self._causal(**loss.model_inputs(moved)).logits[0]
        finally:
            self._causal.train(was_training)

    def differs_alone(self) -> str | None:
        """Why the model is no longer what it was, None where it is."""
        found = (self.logits(batches.join([row])) for row in self.rows)
        return _difference(list(found), self._wanted)

    def differs_joined(self) -> str | None:
        """Why rows end to end are not computed as each alone; None where they are."""
        batch = batches.join(self.rows)
        with segments.running(batch):
            found = self.logits(batch).split([len(row.input_ids) for row in self.rows])
        return _difference(list(found), self._wanted)


def _shortened(row: TokenRow) -> TokenRow:
    """The row's beginning as one row of its own: packed rows in it follow each other as if they were text."""
    ids = row.input_ids[:TRIAL_TOKENS]
    return TokenRow(ids, row.trained[: len(ids)], row.source_row, lengths=(len(ids),))


def _difference(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> str | None:
    tolerance = TOLERANCE.get(wanted[0].dtype, TOLERANCE_16_BIT)
    worst = max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(found, wanted, strict=True)
    )
    return None if worst <= tolerance else f"logits differ by {worst:.1e} of the largest"


def _reason(check: Callable[[], str | None]) -> str | None:
    """What a trial says, or how it failed: a model's own code raises whatever its author chose."""
    try:
        return check()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"


def _fuse_adapters(model: Any, found: FastPaths, trial: _Trial) -> None:
    sites = linears.install(model)
    if not sites:
        found.why_not["fused_adapters"] = "no adapter is plain LoRA without dropout on a 4-bit layer"
        return
    first = batches.join(trial.rows[:1])

    def check() -> str | None:
        linears.group_by_input(sites, lambda: trial.logits(first))
        return trial.differs_alone()

    problem = _reason(check)
    if problem:
        linears.remove(sites)
        found.why_not["fused_adapters"] = problem
    else:
        found.fuses_adapters, found.sites = True, sites


def _fuse_elementwise(model: Any, found: FastPaths, trial: _Trial) -> None:
    installed = elementwise.Installed(model)
    if not installed.is_any:
        found.why_not["fused_elementwise"] = "its norms and rotary positions are of another kind"
        return
    problem = _reason(trial.differs_alone)
    if problem:
        installed.remove()
        found.why_not["fused_elementwise"] = problem
    found.fuses_elementwise = problem is None


def _join_rows(model: Any, found: FastPaths, trial: _Trial) -> None:
    causal = loss.causal_of(model)

    def check() -> str | None:
        segments.install(causal)
        return trial.differs_joined()

    problem = _reason(check)
    if problem:
        segments.remove(causal)
        found.why_not["join_rows"] = problem
    found.joins_rows = problem is None
