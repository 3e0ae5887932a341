"""Which faster ways a run takes: each switched by an option, tried on the loaded model, and left out where it differs.

The trial runs short rows of the data through the plain model first, and compares logits and the adapters' gradients with
everything switched on at once. Only where they differ is each change tried by itself, to find which. Imports the ML stack.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qlora_engine.config import TrainingSettings
from qlora_engine.data import batches
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.out_of_memory import is_out_of_memory
from qlora_engine.training import loss
from qlora_engine.training.fast import elementwise, kept_weights, linears, segments

GIB = 1024**3
TRIAL_TOKENS = (40, 12, 12)
"""Of each row of the trial: a long one, whose logits are compared, and short ones, whose gradients are too."""
TOLERANCE = {torch.float32: 1e-4}
TOLERANCE_16_BIT = 3e-2
GRADIENT_TOLERANCE = {torch.float32: 1e-3}
GRADIENT_TOLERANCE_16_BIT = 1e-1


@dataclass
class FastPaths:
    """What a run computes in a faster way. `why_not` has a reason for each that is switched on and cannot be used."""

    joins_rows: bool = False
    fuses_adapters: bool = False
    fuses_elementwise: bool = False
    compiles_blocks: bool = False
    compile_gain: float = 0.0
    """The share of a pass's time that compiled blocks save."""
    kept_bytes: int = 0
    why_not: dict[str, str] = field(default_factory=dict)
    sites: list[linears.Site] = field(default_factory=list)
    elementwise: elementwise.Installed | None = None
    _aside: int = 0

    def batch(self, rows: Sequence[TokenRow], pad_token_id: int) -> batches.Batch:
        """A micro-batch of `rows`: end to end where the model allows it, else padded."""
        return batches.join(rows) if self.joins_rows else batches.collate(rows, pad_token_id)

    def arranged(self, rows: Sequence[TokenRow]) -> Sequence[TokenRow]:
        """The rows of a step in the order in which its micro-batches take them; padded ones beside their like."""
        return rows if self.joins_rows else batches.by_length(rows)

    def release_kept(self, model: Any) -> bool:
        """Give up the weights that were dequantized once; False where there are none."""
        if not self.kept_bytes:
            return False
        kept_weights.release(model, self.sites)
        self.kept_bytes = 0
        return True

    def separate_adapters(self, model: Any) -> None:
        """Back to PEFT's own forward; kept weights stay kept."""
        size = self.kept_bytes
        self.release_kept(model)
        linears.remove(self.sites)
        self.fuses_adapters, self.sites = False, []
        if size:
            self.kept_bytes = kept_weights.keep(model, (), size)

    def set_aside(self, model: Any) -> Callable[[], None]:
        """Leave every module its own forward, as for a compiler; what is returned brings the faster ones back."""
        size = self.kept_bytes
        self.release_kept(model)
        linears.remove(self.sites)
        if self.elementwise is not None:
            self.elementwise.remove()

        def bring_back() -> None:
            linears.put_back(self.sites)
            self.kept_bytes = kept_weights.keep(model, self.sites, size) if size else 0
            if self.elementwise is not None:
                self.elementwise = elementwise.Installed(model)

        self._aside = size
        return bring_back

    def leave_aside(self, reason: str) -> int:
        """Never bring back what was set aside, for this `reason`; the bytes that are not kept any more."""
        for name, is_on in (
            ("fused_adapters", self.fuses_adapters),
            ("fused_elementwise", self.fuses_elementwise),
            ("kept_weights_gib", bool(self._aside)),
        ):
            if is_on:
                self.why_not[name] = reason
        self.fuses_adapters, self.sites = False, []
        self.fuses_elementwise, self.elementwise = False, None
        return self._aside

    def forget(self) -> None:
        """After a pass was abandoned: let go of outputs that nobody will ask for."""
        for site in self.sites:
            site.group.forget()

    def to_json(self) -> dict[str, Any]:
        return {
            "join_rows": self.joins_rows,
            "fused_adapters": self.fuses_adapters,
            "fused_elementwise": self.fuses_elementwise,
            "compiled_blocks": self.compiles_blocks,
            "compile_gain": round(self.compile_gain, 3),
            "kept_bytes": self.kept_bytes,
            "why_not": dict(self.why_not),
        }


def install(
    model: Any, settings: TrainingSettings, rows: Sequence[TokenRow], *, device: str, spare_bytes: int
) -> FastPaths:
    """Switch on what `settings` ask for and the trial bears out. `spare_bytes`: memory that nothing else of the run needs."""
    with _in_mode(loss.causal_of(model), is_training=False):
        trial = _Trial(model, rows, device)
        found = _switched_on(model, settings, device, spare_bytes, trial)
        if reason(lambda: trial.differs(are_joined=found.joins_rows)) is None:
            return found
        _switch_off(model, found)
        trial.tries_each = True
        found = _switched_on(model, settings, device, spare_bytes, trial)
        _require_same_gradients(model, found, trial)
        return found


@contextlib.contextmanager
def _in_mode(model: Any, *, is_training: bool) -> Iterator[None]:
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


def _switched_on(
    model: Any, settings: TrainingSettings, device: str, spare_bytes: int, trial: _Trial
) -> FastPaths:
    found = FastPaths()
    if settings.fused_adapters:
        found.sites = linears.install(model)
    if device == "cpu":  # first, since every trial is quicker with them
        _keep_weights(model, found, settings, spare_bytes)
    if settings.fused_adapters:
        _fuse_adapters(found, trial)
    if settings.fused_elementwise and device == "cpu":
        _fuse_elementwise(model, found, trial)
    if settings.join_rows:
        _join_rows(model, found, trial)
    return found


def _switch_off(model: Any, found: FastPaths) -> None:
    if found.joins_rows:
        _separate_rows(model, found)
    _separate_elementwise(found)
    found.separate_adapters(model)
    found.release_kept(model)


def _keep_weights(model: Any, found: FastPaths, settings: TrainingSettings, spare_bytes: int) -> None:
    budget = int(settings.kept_weights_gib * GIB)
    found.kept_bytes = kept_weights.keep(model, found.sites, min(budget, spare_bytes))
    if budget and not found.kept_bytes:
        found.why_not["kept_weights_gib"] = "the weights need more memory than is allowed or free"


class _Trial:
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
        with _in_mode(self._causal, is_training=False):
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
        as_trained = _in_mode(self._causal, is_training=True)
        with as_trained, torch.random.fork_rng(devices), torch.no_grad(), segments.running(batch):
            self._causal(**loss.model_inputs(batch))


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


def _fuse_adapters(found: FastPaths, trial: _Trial) -> None:
    if not found.sites:
        found.why_not["fused_adapters"] = "no adapter is plain LoRA without dropout on a 4-bit layer"
        return
    first = batches.join(trial.short[:1])

    def check() -> str | None:
        with torch.no_grad():
            linears.group_by_input(found.sites, lambda: trial.logits(first))
        return trial.differs_alone()

    problem = reason(check)
    if problem:
        found.separate_adapters(trial.model)
        found.why_not["fused_adapters"] = problem
    found.fuses_adapters = problem is None


def _fuse_elementwise(model: Any, found: FastPaths, trial: _Trial) -> None:
    installed = elementwise.Installed(model)
    if not installed.is_any:
        found.why_not["fused_elementwise"] = "its norms and rotary positions are of another kind"
        return
    problem = reason(trial.differs_alone)
    if problem:
        installed.remove()
        found.why_not["fused_elementwise"] = problem
    found.fuses_elementwise = problem is None
    found.elementwise = None if problem else installed


def _join_rows(model: Any, found: FastPaths, trial: _Trial) -> None:
    causal = loss.causal_of(model)

    def check() -> str | None:
        segments.install(causal)
        trial.train_joined()
        return trial.differs_joined()

    problem = reason(check)
    if problem:
        segments.remove(causal)
        found.why_not["join_rows"] = problem
    found.joins_rows = problem is None


def _require_same_gradients(model: Any, found: FastPaths, trial: _Trial) -> None:
    """Leave out what is on, one after the other, until gradients are those of the plain model."""
    undo: list[tuple[str, Callable[[], Any]]] = []
    if found.joins_rows:
        undo.append(("join_rows", lambda: _separate_rows(model, found)))
    if found.elementwise is not None:
        undo.append(("fused_elementwise", lambda: _separate_elementwise(found)))
    if found.fuses_adapters:
        undo.append(("fused_adapters", lambda: found.separate_adapters(model)))
    if found.kept_bytes:
        undo.append(("kept_weights_gib", lambda: found.release_kept(model)))
    for name, take_back in undo:
        problem = reason(lambda: trial.differs_in_gradients(are_joined=found.joins_rows))
        if problem is None:
            return
        take_back()
        found.why_not[name] = problem


def _separate_rows(model: Any, found: FastPaths) -> None:
    segments.remove(loss.causal_of(model))
    found.joins_rows = False


def _separate_elementwise(found: FastPaths) -> None:
    if found.elementwise is not None:
        found.elementwise.remove()
    found.elementwise, found.fuses_elementwise = None, False
