"""Packs short rows into long ones; each keeps seeing only itself (CORRECTNESS 21). Torch-free.

The collator restarts positions at each boundary, and transformers builds a block-diagonal mask from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from qlora_engine.data.tokenize import TokenRow


def pack(rows: Sequence[TokenRow], seq_len: int) -> list[TokenRow]:
    """First-fit decreasing into bins of `seq_len`; every row is in exactly one bin, whole, and bins are in the order
    of their first row in the data, so that the result depends on nothing but the rows."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i].input_ids), i)):
        size = len(rows[index].input_ids)
        place = next((b for b, left in enumerate(room) if left >= size), None)
        if place is None:
            bins.append([index])
            room.append(seq_len - size)
        else:
            bins[place].append(index)
            room[place] -= size
    return [_joined([rows[i] for i in sorted(members)]) for members in sorted(bins, key=min)]


def _joined(rows: Sequence[TokenRow]) -> TokenRow:
    """One row of several; the first token of each is never trained, since it would be predicted from its neighbour."""
    return TokenRow(
        input_ids=list(chain.from_iterable(row.input_ids for row in rows)),
        trained=list(chain.from_iterable([False, *row.trained[1:]] for row in rows)),
        source_row=rows[0].source_row,
        lengths=tuple(len(row.input_ids) for row in rows),
        cut_tokens=sum(row.cut_tokens for row in rows),
        is_answer_cut=any(row.is_answer_cut for row in rows),
    )
