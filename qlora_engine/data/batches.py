"""Rows into tensors, and the order in which they are visited. Imports torch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qlora_engine.data.rectangle import IGNORED, lay_out
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.data.tokens import lengths_of

__all__ = ["IGNORED", "Batch", "by_length", "collate", "join", "longest", "order", "shortest", "token_count"]

TENSORS = ("input_ids", "labels", "attention_mask", "position_ids", "predicting", "targets")


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch. `input_ids` and `labels` are (batch, seq) int64, labels not shifted, -100 where untrained.

    `attention_mask` (batch, seq) is None when nothing is padded or rows are packed; packed rows carry
    `position_ids` (batch, seq) that restart at each boundary, from which transformers separates them. `lengths` are those
    of rows laid end to end (`join`), which only an attention that knows of them may compute. `predicting` (trained,) says
    where, in all tokens one after the other, a trained token is predicted, and `targets` (trained,) what; found on the
    computer, so that no device is asked.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    tokens: int
    lengths: tuple[int, ...] = ()
    predicting: torch.Tensor | None = None
    targets: torch.Tensor | None = None

    @property
    def trained(self) -> int:
        """Tokens that count in the loss."""
        return int((self.labels[:, 1:] != IGNORED).sum()) if self.targets is None else self.targets.numel()

    def to(self, device: str) -> Batch:
        """On `device`; to a GPU through pinned memory, so that the next rows travel while these are computed."""
        found: dict[str, Any] = {name: getattr(self, name) for name in TENSORS}
        moved: dict[str, Any] = {k: None if v is None else sent(v, device) for k, v in found.items()}
        return replace(self, **moved)

    def rows(self, start: int, end: int) -> Batch:
        """The rows [start, end) as a batch of their own."""
        part = slice(start, end)
        return replace(
            self,
            predicting=None,
            targets=None,
            input_ids=self.input_ids[part],
            labels=self.labels[part],
            attention_mask=None if self.attention_mask is None else self.attention_mask[part],
            position_ids=None if self.position_ids is None else self.position_ids[part],
        )


def sent(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """`tensor` on `device`; the host does not wait for what is still computed there."""
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def collate(rows: Sequence[TokenRow], pad_token_id: int) -> Batch:
    """Pad `rows` on the right to the longest of them."""
    found = lay_out(rows, pad_token_id)
    input_ids, labels = torch.from_numpy(found.input_ids), torch.from_numpy(found.labels)
    tokens = int(found.mask.sum())
    is_packed, is_full = found.positions is not None, tokens == found.mask.size
    mask = None if is_packed or is_full else torch.from_numpy(found.mask)
    positions = torch.from_numpy(found.positions) if is_packed else None
    return Batch(input_ids, labels, mask, positions, tokens, (), *_predictions(found.labels))


def join(rows: Sequence[TokenRow]) -> Batch:
    """`rows`, and the rows packed into them, end to end in one long row (1, tokens): nothing is padded. The first token of
    each is never trained, since it would be predicted from its neighbour."""
    lengths = tuple(length for row in rows for length in row.lengths)
    ids = np.concatenate([np.asarray(row.input_ids, np.int64) for row in rows])
    trained = np.concatenate([np.asarray(row.trained, bool) for row in rows])
    positions = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    labels = np.where(trained & (positions != 0), ids, IGNORED)[None]
    return Batch(
        torch.from_numpy(ids[None]), torch.from_numpy(labels), None, torch.from_numpy(positions[None]), ids.size,
        lengths, *_predictions(labels),
    )  # fmt: skip


def _predictions(labels: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`predicting` and `targets` of labels (batch, seq)."""
    rows, places = np.nonzero(labels[:, 1:] != IGNORED)
    return (
        torch.from_numpy(rows * labels.shape[1] + places),
        torch.from_numpy(labels[rows, places + 1]),
    )


def order(rows: int, seed: int, epoch: int) -> array[int]:
    """The order of an epoch: a permutation that depends on seed and epoch alone; 8 bytes a row."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    found: array[int] = array("q")
    found.frombytes(torch.randperm(rows, generator=generator).numpy().tobytes())
    return found


def by_length(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The same rows, those of similar length beside each other, so that little is padded."""
    return sorted(rows, key=lambda row: len(row.input_ids))


def longest(rows: Sequence[TokenRow], count: int) -> list[TokenRow]:
    """The longest rows first, for the dry step (CORRECTNESS 26)."""
    return [rows[place] for place in (-lengths_of(rows)).argsort(kind="stable")[:count].tolist()]


def shortest(rows: Sequence[TokenRow]) -> TokenRow:
    return rows[int(lengths_of(rows).argmin())]


def token_count(rows: Sequence[TokenRow]) -> int:
    """Tokens of all rows together."""
    return int(lengths_of(rows).sum())
