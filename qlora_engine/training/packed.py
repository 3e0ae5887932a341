"""Whether a loaded model keeps packed rows apart: tried on rows of the data, not told by its name. Imports torch.

Packed rows restart their positions, from which transformers makes a mask that keeps each to itself. A class that learned its
positions by counting along the mask, or carries a state from token to token, sees its neighbour all the same (CORRECTNESS 21).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch

from qlora_engine.data import PreparedData, batches
from qlora_engine.data.packing import PackedRows, joined
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.device import DevicePlan
from qlora_engine.events import Event, Noticed
from qlora_engine.out_of_memory import is_out_of_memory
from qlora_engine.training import loss

TRIAL_TOKENS = 48
"""So much of two rows is tried."""
ALLOWED = {torch.float32: 1e-4}
ALLOWED_IN_16_BIT = 5e-2


def unpacked_where_rows_leak(
    model: Any, prepared: PreparedData, plan: DevicePlan
) -> Generator[Event, None, PreparedData]:
    """The data as they are; with their rows unpacked, and that said, where a packed row sees the one before it."""
    if not isinstance(prepared.train, PackedRows) or len(prepared.whole) < 2:
        return prepared
    reason = leak(model, prepared.whole[0], prepared.whole[1], plan.name)
    if reason is None:
        return prepared
    yield Noticed(
        "warning", "data.unpacked",
        f"Rows are trained one by one, not packed: in this model a packed row is computed differently ({reason})",
        "set data.packing to false to leave the trial out; rows of similar length are trained together all the same",
    )  # fmt: skip
    return replace(prepared, train=prepared.whole)


def leak(model: Any, first: TokenRow, second: TokenRow, device: str) -> str | None:
    """How the second row differs when the first is packed before it; None where it does not."""
    rows = [_beginning(first), _beginning(second)]
    before = len(rows[0].input_ids)
    alone = _logits(model, batches.collate(rows[1:], 0).to(device))
    try:
        together = _logits(model, batches.collate([joined(rows)], 0).to(device))[before:]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # a class that takes no positions cannot be given packed rows
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
    worst = float((together - alone).abs().max() / alone.abs().max().clamp(min=1e-6))
    allowed = ALLOWED.get(computes_in(model), ALLOWED_IN_16_BIT)
    return None if worst <= allowed else f"its logits differ by {worst:.1e} of the largest"


def computes_in(model: Any) -> torch.dtype:
    """The type that the model computes in, by its embeddings."""
    dtype: torch.dtype = loss.causal_of(model).get_input_embeddings().weight.dtype
    return dtype


def _beginning(row: TokenRow) -> TokenRow:
    ids = row.input_ids[:TRIAL_TOKENS]
    return TokenRow(ids, row.trained[: len(ids)], row.source_row, lengths=(len(ids),))


def _logits(model: Any, batch: batches.Batch) -> torch.Tensor:
    """(tokens, V) in fp32 of one row, without dropout."""
    causal = loss.causal_of(model)
    was_training = causal.training
    causal.eval()
    try:
        with torch.no_grad():
            found: torch.Tensor = causal(**loss.model_inputs(batch)).logits[0].float()
            return found
    finally:
        causal.train(was_training)
