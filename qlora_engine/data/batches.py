"""Rows into tensors, and the order in which they are visited. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from qlora_engine.data.rectangle import IGNORED, lay_out
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.data.tokens import lengths_of

__all__ = ["IGNORED", "Batch", "by_length", "collate", "join", "longest", "order", "shortest", "token_count"]


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch. `input_ids` and `labels` are (batch, seq) int64, labels not shifted, -100 where untrained.

    `attention_mask` (batch, seq) is None when nothing is padded or rows are packed; packed rows carry
    `position_ids` (batch, seq) that restart at each boundary, from which transformers separates them. `lengths` are those
    of rows laid end to end (`join`), which only an attention that knows of them may compute.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    tokens: int
    lengths: tuple[int, ...] = ()

    def to(self, device: str) -> Batch:
        def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            attention_mask=move(self.attention_mask),
            position_ids=move(self.position_ids),
        )

    def rows(self, start: int, end: int) -> Batch:
        """The rows [start, end) as a batch of their own."""
        part = slice(start, end)
        return replace(
            self,
            input_ids=self.input_ids[part],
            labels=self.labels[part],
            attention_mask=None if self.attention_mask is None else self.attention_mask[part],
            position_ids=None if self.position_ids is None else self.position_ids[part],
        )


def collate(rows: Sequence[TokenRow], pad_token_id: int) -> Batch:
    """Pad `rows` on the right to the longest of them."""
    found = lay_out(rows, pad_token_id)
    input_ids, labels = torch.from_numpy(found.input_ids), torch.from_numpy(found.labels)
    tokens = int(found.mask.sum())
    if found.positions is not None:
        return Batch(input_ids, labels, None, torch.from_numpy(found.positions), tokens)
    is_full = tokens == found.mask.size
    return Batch(input_ids, labels, None if is_full else torch.from_numpy(found.mask), None, tokens)


def join(rows: Sequence[TokenRow]) -> Batch:
    """`rows`, and the rows packed into them, end to end in one long row (1, tokens): nothing is padded. The first token of
    each is never trained, since it would be predicted from its neighbour."""
    lengths = tuple(length for row in rows for length in row.lengths)
    ids = torch.tensor([[token for row in rows for token in row.input_ids]], dtype=torch.int64)
    trained = torch.tensor([[is_trained for row in rows for is_trained in row.trained]])
    positions = torch.cat([torch.arange(length) for length in lengths])
    trained[0, positions == 0] = False
    labels = torch.where(trained, ids, IGNORED)
    return Batch(ids, labels, None, positions.unsqueeze(0), ids.numel(), lengths)


def order(rows: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: a permutation that depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return list(torch.randperm(rows, generator=generator).tolist())


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
