"""How a run computes its passes, chosen on the loaded model as each way is borne out. Imports torch."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from qlora_engine.control import Control
from qlora_engine.data import batches
from qlora_engine.data.packing import PackedRows
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.events import Event, Noticed, PhaseChanged
from qlora_engine.training import compiling, loss, room, router_loss
from qlora_engine.training.fast import install

LOSS_TRIAL_TOKENS = 16


def choose(parts: Any, control: Control) -> Iterator[Event]:
    """How passes are computed: faster ways, the loss, the routers' loss, compiled blocks; each as it is borne out."""
    yield from _choose_fast_paths(parts)
    yield from _choose_loss(parts)
    parts.router, said = router_loss.chosen(
        loss.causal_of(parts.model), parts.config.training.router_loss, parts.has_experts
    )
    yield from said
    yield from compiling.choose(parts, control.check)


def _choose_fast_paths(parts: Any) -> Generator[Event, None, None]:
    yield PhaseChanged("preparing", "Trying the faster ways on the loaded model")
    predicted = parts.predicted_peak_bytes or 0
    spare = room.usable_bytes(parts.plan) - predicted
    parts.fast = install.install(
        parts.model, parts.config.training, parts.data.train,
        device=parts.plan.kind, spare_bytes=spare, known=parts.known.ways,
    )  # fmt: skip
    besides = parts.grouped_experts_bytes if parts.fast.grouped_bytes else 0
    parts.predicted_peak_bytes = predicted + parts.fast.kept_bytes + besides
    reason = parts.fast.why_not.get("join_rows")
    if reason is not None:
        are_packed = isinstance(parts.data.train, PackedRows)
        yield Noticed(
            "info",
            "speed.padded",
            f"Rows are {'packed under one mask' if are_packed else 'padded, those of similar length together'}: "
            f"laid end to end this model computes them differently ({reason})",
        )


def _choose_loss(parts: Any) -> Generator[Event, None, None]:
    """Chunked loss only where it reproduces the model's own logits; a family with another head gets the full one. Any tokens
    show it, so few are tried, and after the faster ways, which have been proven by then."""
    if parts.known.is_chunkable:
        return
    ids = batches.shortest(parts.data.train).input_ids[:LOSS_TRIAL_TOKENS]
    row = TokenRow(ids, [True] * len(ids), 0, lengths=(len(ids),))
    batch = batches.collate([row], parts.pad_token_id).to(parts.plan.name)
    try:
        is_same = loss.is_chunkable(parts.model, batch)
    except ValueError:
        is_same = False
    parts.is_chunkable = is_same
    if not is_same and parts.loss_kind == "chunked":
        parts.loss_kind = "full"
        yield Noticed(
            "warning",
            "loss.full",
            "This model shapes its logits in a way of its own, so the loss is computed over all logits at once",
            "expect more memory than with the chunked loss",
        )
