"""Token rows of a dataset, memory-mapped: a sequence that makes one row when it is asked for it. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from qlora_engine import row_numbers
from qlora_engine.data.tokenize import TokenRow, cut
from qlora_engine.parsing import object_from_json

TOKENS_FILE = "tokens.arrow"
META_FILE = "meta.json"


class TokenStore:
    """Every token row that was made of a source's rows, whole, with what is known of each (`column`)."""

    def __init__(self, folder: Path) -> None:
        """Raises:
        OSError, ValueError, KeyError: the entry is damaged.
        """
        import numpy as np
        import pyarrow as pa

        meta = object_from_json((folder / META_FILE).read_text(encoding="utf-8"))
        self.problems: dict[str, list[int]] = meta["problems"]
        self.noted: dict[str, row_numbers.Ranges] = {
            name: tuple((first, last) for first, last in found) for name, found in meta["noted"].items()
        }
        self.numbers = int(meta["numbers"])
        self._batches: list[Any] = []
        file = folder / TOKENS_FILE
        if file.is_file():
            reader = pa.ipc.open_stream(pa.memory_map(str(file)))
            self._batches = list(reader)
        self._firsts = np.concatenate([[0], np.cumsum([b.num_rows for b in self._batches])]).astype(np.int64)
        if int(self._firsts[-1]) != int(meta["rows"]):
            raise ValueError("the token file is not whole")

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def column(self, name: str) -> Any:
        """A column of numbers as one array: number, part, source, trained, flags, script, bos, unknown."""
        import numpy as np

        pieces = [batch.column(name).to_numpy(zero_copy_only=False) for batch in self._batches]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

    @cached_property
    def lengths(self) -> Any:
        """Tokens of each row, uncut."""
        import numpy as np

        pieces = [np.diff(batch.column("ids").offsets.to_numpy()) for batch in self._batches]
        return np.concatenate(pieces).astype(np.int64) if pieces else np.zeros(0, np.int64)

    def largest_id(self) -> int:
        """The largest token of all rows; -1 without any."""
        pieces = [batch.column("ids").flatten().to_numpy() for batch in self._batches]
        return max((int(piece.max()) for piece in pieces if len(piece)), default=-1)

    def hashes(self, name: str) -> Any:
        """(rows,) uint64: the first half of `key` or `loose`."""
        import numpy as np

        pieces = []
        for batch in self._batches:
            array = batch.column(name)
            raw = np.frombuffer(array.buffers()[1], np.uint64)
            first = array.offset * 2
            pieces.append(raw[first : first + 2 * len(array) : 2])
        return np.concatenate(pieces) if pieces else np.zeros(0, np.uint64)

    def minima(self) -> Any:
        """(rows, 16) uint32, for finding what is nearly alike."""
        import numpy as np

        pieces = [b.column("minima").flatten().to_numpy().reshape(b.num_rows, -1) for b in self._batches]
        return np.concatenate(pieces) if pieces else np.zeros((0, 16), np.uint32)

    def spans(self, places: Any) -> Any:
        """(runs, 2) int32: first and last+1 token of every trained run, of the rows at `places` together, in no order."""
        import numpy as np

        pieces = [batch.column("spans").flatten().to_numpy().reshape(-1, 2) for batch in self._batches]
        if not pieces:
            return np.zeros((0, 2), np.int32)
        runs = [np.diff(batch.column("spans").offsets.to_numpy()) // 2 for batch in self._batches]
        is_meant = np.zeros(len(self), bool)
        is_meant[places] = True
        return np.concatenate(pieces)[np.repeat(is_meant, np.concatenate(runs))]

    def row_spans(self, row: int) -> Any:
        batch, place = self._find(row)
        return batch.column("spans")[place].values.to_numpy().reshape(-1, 2)

    def row(self, row: int) -> TokenRow:
        batch, place = self._find(row)
        ids = batch.column("ids")[place].values.to_numpy().tolist()
        trained = [False] * len(ids)
        for start, end in batch.column("spans")[place].values.to_numpy().reshape(-1, 2).tolist():
            trained[start:end] = [True] * (end - start)
        return TokenRow(ids, trained, batch.column("number")[place].as_py(), (len(ids),))

    def _find(self, row: int) -> tuple[Any, int]:
        import numpy as np

        at = int(np.searchsorted(self._firsts, row, side="right")) - 1
        return self._batches[at], row - int(self._firsts[at])


@dataclass(frozen=True, eq=False)
class TokenRows(Sequence[TokenRow]):
    """Some rows of a store in an order, each cut to `seq_len` when it is made. `places` are rows of the store."""

    store: TokenStore
    places: Any
    seq_len: int

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> TokenRows: ...
    def __getitem__(self, index: int | slice) -> TokenRow | TokenRows:
        if isinstance(index, slice):
            return TokenRows(self.store, self.places[index], self.seq_len)
        return cut(self.store.row(int(self.places[index])), self.seq_len)

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> Any:
        """Tokens of each row as it is trained: cut."""
        import numpy as np

        return np.minimum(self.store.lengths[self.places], self.seq_len)

    @property
    def numbers(self) -> Any:
        """The row of the data that each was made from."""
        return self.store.column("number")[self.places]

    @property
    def trained_counts(self) -> Any:
        """Trained tokens of each row as it is trained."""
        found = self.store.column("trained")[self.places].astype("int64")
        for index in (self.store.lengths[self.places] > self.seq_len).nonzero()[0].tolist():
            found[index] = trained_within(self.store.row_spans(int(self.places[index])), self.seq_len)
        return found


def trained_within(spans: Any, seq_len: int) -> int:
    """Trained tokens among the first `seq_len` but for the very first, which nothing predicts."""
    ends = spans.clip(max=seq_len)
    starts = ends[:, 0].clip(min=1)
    return int((ends[:, 1] - starts).clip(min=0).sum())


def lengths_of(rows: Sequence[TokenRow]) -> Any:
    """Tokens of each row, without making the rows where they are known."""
    import numpy as np

    known = getattr(rows, "lengths", None)
    return np.array([len(row.input_ids) for row in rows], np.int64) if known is None else known
