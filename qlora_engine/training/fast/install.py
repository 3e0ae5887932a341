"""Which faster ways a run takes: each switched by an option, tried on the loaded model, and left out where it differs.

The trial runs short rows of the data through the plain model first, and compares logits and the adapters' gradients with
everything switched on at once. Only where they differ is each change tried by itself, to find which. Imports the ML stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_engine.config import TrainingSettings
from qlora_engine.data import batches
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.memory.experts import are_grouped
from qlora_engine.models.experts import grouped
from qlora_engine.training import loss
from qlora_engine.training.fast import elementwise, kept_weights, linears, segments
from qlora_engine.training.fast.trial import Remembered, Trial, in_mode, reason

GIB = 1024**3


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
    grouped_bytes: int = 0
    """What all experts of a block take, dequantized together; 0 where they are computed one by one."""
    why_not: dict[str, str] = field(default_factory=dict)
    sites: list[linears.Site] = field(default_factory=list)
    elementwise: elementwise.Installed | None = None
    is_partial: bool = False
    """True where the trial found something that differs and left it out."""
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

    def separate_experts(self, model: Any) -> bool:
        """Back to one expert after the other; False where that is so already."""
        was_grouped, self.grouped_bytes = bool(self.grouped_bytes), 0
        grouped.remove(model)
        return was_grouped

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
        size, are_grouped = self.kept_bytes, bool(self.grouped_bytes)
        self.release_kept(model)
        linears.remove(self.sites)
        grouped.remove(model)
        if self.elementwise is not None:
            self.elementwise.remove()

        def bring_back() -> None:
            linears.put_back(self.sites)
            if are_grouped:
                grouped.install(model)
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
            ("group_experts", bool(self.grouped_bytes)),
        ):
            if is_on:
                self.why_not[name] = reason
        self.fuses_adapters, self.sites = False, []
        self.fuses_elementwise, self.elementwise = False, None
        self.grouped_bytes = 0
        return self._aside

    def forget(self) -> None:
        """After a pass was abandoned: let go of outputs that nobody will ask for."""
        for site in self.sites:
            site.group.forget()

    def to_remember(self) -> dict[str, Any] | None:
        """What a later start need not try again; None where anything was left out."""
        if self.is_partial or set(self.why_not) - {"kept_weights_gib"}:
            return None
        return {"groups": linears.groups_of(self.sites)}

    def to_json(self) -> dict[str, Any]:
        return {
            "join_rows": self.joins_rows,
            "fused_adapters": self.fuses_adapters,
            "fused_elementwise": self.fuses_elementwise,
            "compiled_blocks": self.compiles_blocks,
            "compile_gain": round(self.compile_gain, 3),
            "kept_bytes": self.kept_bytes,
            "grouped_bytes": self.grouped_bytes,
            "why_not": dict(self.why_not),
        }


def install(
    model: Any, settings: TrainingSettings, rows: Sequence[TokenRow], *, device: str, spare_bytes: int,
    known: Mapping[str, Any] | None = None,
) -> FastPaths:  # fmt: skip
    """Switch on what `settings` ask for and the trial bears out. `spare_bytes`: memory that nothing else of the run needs.
    `known`: `FastPaths.to_remember` of an earlier trial of the same base, settings, machine and program, which is not made again."""
    if known is not None:
        found = _switched_on(model, settings, device, spare_bytes, Remembered(model, known))
        if found.to_remember() == known:
            return found
        _switch_off(model, found)
    with in_mode(loss.causal_of(model), is_training=False):
        trial = Trial(model, rows, device)
        found = _switched_on(model, settings, device, spare_bytes, trial)
        if reason(lambda: trial.differs(are_joined=found.joins_rows)) is None:
            return found
        _switch_off(model, found)
        trial.tries_each = True
        found = _switched_on(model, settings, device, spare_bytes, trial)
        _require_same_gradients(model, found, trial)
        found.is_partial = True
        return found


def _switched_on(
    model: Any, settings: TrainingSettings, device: str, spare_bytes: int, trial: Trial | Remembered
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
    if are_grouped(settings.group_experts, device):
        _group_experts(model, found, trial, settings, device, spare_bytes)
    if settings.join_rows:
        _join_rows(model, found, trial)
    return found


def _switch_off(model: Any, found: FastPaths) -> None:
    if found.joins_rows:
        _separate_rows(model, found)
    _separate_elementwise(found)
    found.separate_experts(model)
    found.separate_adapters(model)
    found.release_kept(model)


def _keep_weights(model: Any, found: FastPaths, settings: TrainingSettings, spare_bytes: int) -> None:
    budget = int(settings.kept_weights_gib * GIB)
    found.kept_bytes = kept_weights.keep(model, found.sites, min(budget, spare_bytes))
    if budget and not found.kept_bytes:
        found.why_not["kept_weights_gib"] = "the weights need more memory than is allowed or free"


def _fuse_adapters(found: FastPaths, trial: Trial | Remembered) -> None:
    if not found.sites:
        found.why_not["fused_adapters"] = "no adapter is plain LoRA without dropout on a 4-bit layer"
        return

    def check() -> str | None:
        trial.group(found.sites)
        return trial.differs_alone()

    problem = reason(check)
    if problem:
        found.separate_adapters(trial.model)
        found.why_not["fused_adapters"] = problem
    found.fuses_adapters = problem is None


def _fuse_elementwise(model: Any, found: FastPaths, trial: Trial | Remembered) -> None:
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


def _group_experts(
    model: Any, found: FastPaths, trial: Trial | Remembered, settings: TrainingSettings, device: str, spare_bytes: int
) -> None:  # fmt: skip
    size = grouped.needed_bytes(model)
    if not size and settings.group_experts == "auto":
        return  # nobody asked
    problem = grouped.why_not(model, device)
    if problem is None and size > spare_bytes:
        problem = "all experts of a block need more memory than is free"
    if problem is None:
        grouped.install(model)
        found.grouped_bytes = size
        problem = reason(trial.differs_alone)
    if problem:
        found.separate_experts(model)
        found.why_not["group_experts"] = problem


def _join_rows(model: Any, found: FastPaths, trial: Trial | Remembered) -> None:
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


def _require_same_gradients(model: Any, found: FastPaths, trial: Trial) -> None:
    """Leave out what is on, one after the other, until gradients are those of the plain model."""
    undo: list[tuple[str, Callable[[], Any]]] = []
    if found.joins_rows:
        undo.append(("join_rows", lambda: _separate_rows(model, found)))
    if found.grouped_bytes:
        undo.append(("group_experts", lambda: found.separate_experts(model)))
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
