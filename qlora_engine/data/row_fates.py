"""What became of every row of prepared data, counted on whole columns: its side, its size, why it was left out, how bad it is.

Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qlora_engine.data.inspection import HELD_OUT, Inspector
from qlora_engine.data.pipeline import BY_HAND, CUT_AWAY
from qlora_engine.data.tokens import TokenStore
from qlora_engine.errors import EngineError, did_you_mean

SIDES = ("left_out", "train", "held_out")
ORDERS = ("longest", "most_cut", "fewest_trained", "most_unknown")
KINDS = ("all", *SIDES, *ORDERS)


@dataclass(frozen=True, eq=False)
class RowFates:
    """Rows by number from 1; those `of` the inspector."""

    inspector: Inspector

    @property
    def _tokens(self) -> TokenStore:
        return self.inspector.kept.store

    @cached_property
    def _store_numbers(self) -> Any:
        """(token rows,) the data row of each, ascending."""
        return self._tokens.column("number")

    @cached_property
    def sides(self) -> Any:
        """(rows + 1,) place in SIDES; a row of which one part is trained is trained."""
        import numpy as np

        prepared = self.inspector.prepared
        found = np.zeros(len(self.inspector.store) + 1, np.int8)
        for side, rows in ((2, prepared.held_out), (1, prepared.whole)):
            if rows.store is self._tokens:
                found[rows.numbers] = side
        return found

    @cached_property
    def _reasons(self) -> dict[int, str]:
        problems = self._tokens.problems
        return {number: reason for reason, numbers in problems.items() for number in numbers}

    @cached_property
    def _orders(self) -> dict[str, Any]:
        return {}

    def reason(self, number: int) -> str:
        if self.inspector.is_left_out(number):
            return BY_HAND
        known = self._reasons.get(number)
        if known is not None:
            return known
        return CUT_AWAY if self.sizes(number)[0] else "it stands in the held-out file too"

    def sizes(self, number: int) -> tuple[int | None, int | None]:
        """(tokens uncut, trained tokens uncut) of all token rows that were made of a row; None where none was."""
        import numpy as np

        first, end = np.searchsorted(self._store_numbers, [number, number + 1]).tolist()
        if first == end:
            return None, None
        store = self._tokens
        return int(store.lengths[first:end].sum()), int(self._trained[first:end].sum())

    @cached_property
    def _trained(self) -> Any:
        return self._tokens.column("trained")

    def numbers(self, kind: str) -> Any:
        """Of a share that is held out, none is trained or left out."""
        import numpy as np

        if kind not in KINDS:
            raise EngineError("data.rows", f"there are no rows {kind!r}", did_you_mean(kind, KINDS))
        if kind == "all":
            return self.inspector.numbers
        if kind not in self._orders:
            if kind in SIDES:
                found = np.flatnonzero(self.sides == SIDES.index(kind))
                is_none = self.inspector.is_share and kind != HELD_OUT
                self._orders[kind] = found[:0] if is_none else found[found > 0]
            else:
                self._orders[kind] = self._worst(kind)
        return self._orders[kind]

    def _worst(self, kind: str) -> Any:
        import numpy as np

        rows = self.inspector.kept
        whole = rows.store.lengths[rows.places]
        badness = {
            "longest": lambda: whole,
            "most_cut": lambda: whole - rows.seq_len,
            "fewest_trained": lambda: -rows.trained_counts,
            "most_unknown": lambda: rows.store.column("unknown")[rows.places],
        }[kind]()
        order = (-badness).argsort(kind="stable")
        if kind in ("most_cut", "most_unknown"):
            order = order[badness[order] > 0]
        numbers = rows.numbers[order]
        _, first = np.unique(numbers, return_index=True)
        return numbers[np.sort(first)]
