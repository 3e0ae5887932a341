"""Rows side by side as a rectangle of numbers: what training computes with and the inspector shows. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qlora_engine.data.tokenize import TokenRow

IGNORED = -100


@dataclass(frozen=True, eq=False)
class Layout:
    """(batch, seq) int64 arrays: `labels` are not shifted and -100 where untrained, `mask` is 1 on real tokens,
    `positions` (None unless rows are packed) restart at each boundary."""

    input_ids: Any
    labels: Any
    mask: Any
    positions: Any


def lay_out(rows: Sequence[TokenRow], pad_token_id: int) -> Layout:
    """Pad `rows` on the right to the longest of them."""
    import numpy as np

    width = max(len(row.input_ids) for row in rows)
    input_ids = np.full((len(rows), width), pad_token_id, np.int64)
    labels = np.full((len(rows), width), IGNORED, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        size = len(row.input_ids)
        ids = np.array(row.input_ids, np.int64)
        input_ids[index, :size] = ids
        labels[index, :size] = np.where(np.array(row.trained, bool), ids, IGNORED)
        mask[index, :size] = 1
    is_packed = any(len(row.lengths) > 1 for row in rows)
    return Layout(input_ids, labels, mask, _restarting_positions(rows, width) if is_packed else None)


def _restarting_positions(rows: Sequence[TokenRow], width: int) -> Any:
    """(batch, seq): 0, 1, 2 ... within each packed row; padding counts as one more row, so that it sees nothing."""
    import numpy as np

    positions = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        padding = width - len(row.input_ids)
        positions[index] = np.concatenate([np.arange(size) for size in (*row.lengths, padding) if size])
    return positions
