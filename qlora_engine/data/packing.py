"""Packs short rows into long ones; each keeps seeing only itself (CORRECTNESS 21). Torch-free.

The collator restarts positions at each boundary, and transformers builds a block-diagonal mask from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, overload

from qlora_engine.data.tokenize import TokenRow
from qlora_engine.data.tokens import lengths_of


@dataclass(frozen=True, eq=False)
class PackedRows(Sequence[TokenRow]):
    """Rows put together: bin i holds the rows `members[edges[i]:edges[i + 1]]` of `rows`, made when it is asked for."""

    rows: Sequence[TokenRow]
    members: Any
    edges: Any

    def __len__(self) -> int:
        return len(self.edges) - 1

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenRow]: ...
    def __getitem__(self, index: int | slice) -> TokenRow | list[TokenRow]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        members = self.members[self.edges[place] : self.edges[place + 1]].tolist()
        return joined([self.rows[member] for member in members])

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> Any:
        """Tokens of each bin."""
        return self.sums(lengths_of(self.rows))

    def sums(self, counts: Any) -> Any:
        """Of a count of each row, what it is in each bin."""
        import numpy as np

        return np.add.reduceat(counts[self.members], self.edges[:-1])


def pack(rows: Sequence[TokenRow], seq_len: int) -> PackedRows:
    """Best-fit decreasing into bins of `seq_len`; every row is in exactly one bin, whole, and bins are in the order of
    their first row in the data, so that the result depends on nothing but the rows."""
    import numpy as np

    bins = _bins(lengths_of(rows), seq_len)
    first = np.full(int(bins.max()) + 1, len(bins), np.int64)
    np.minimum.at(first, bins, np.arange(len(bins)))
    members = np.lexsort((np.arange(len(bins)), first[bins]))
    edges = np.flatnonzero(np.diff(first[bins][members], prepend=-1))
    return PackedRows(rows, members, np.concatenate([edges, [len(members)]]))


def _bins(lengths: Any, seq_len: int) -> Any:
    """The bin of each row: the fullest that it fits into. Bit r of `rooms` says that a bin has room for r tokens."""
    import numpy as np

    found = np.zeros(len(lengths), np.int64)
    rooms, count = 0, 0
    with_room: dict[int, list[int]] = {}
    sizes = lengths.tolist()
    for row in np.argsort(-lengths, kind="stable").tolist():
        size = sizes[row]
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            place = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, place, count = seq_len, count, count + 1
        found[row] = place
        left = room - size
        with_room.setdefault(left, []).append(place)
        rooms |= 1 << left
    return found


def joined(rows: Sequence[TokenRow]) -> TokenRow:
    """One row of several; the first token of each is never trained, since it would be predicted from its neighbour."""
    return TokenRow(
        input_ids=list(chain.from_iterable(row.input_ids for row in rows)),
        trained=list(chain.from_iterable([False, *row.trained[1:]] for row in rows)),
        source_row=rows[0].source_row,
        lengths=tuple(len(row.input_ids) for row in rows),
        cut_tokens=sum(row.cut_tokens for row in rows),
        is_answer_cut=any(row.is_answer_cut for row in rows),
    )
