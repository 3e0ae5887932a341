"""How much of the data any maximum length keeps, counted once for every maximum. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlora_engine.data.tokens import TokenStore

BINS = 40
POINTS = 160


@dataclass(frozen=True, eq=False)
class Lengths:
    """`rows[n]` rows have n tokens; `trained[n]` rows train their token n."""

    rows: Any
    trained: Any

    @classmethod
    def of(cls, *rows: tuple[TokenStore, Any]) -> Lengths:
        """Of stores with the places in them that are meant."""
        import numpy as np

        lengths = np.concatenate([store.lengths[places] for store, places in rows])
        spans = np.concatenate([store.spans(places) for store, places in rows])
        size = int(lengths.max()) + 1 if len(lengths) else 1
        begins = np.bincount(spans[:, 0], minlength=size + 1)
        trained = np.cumsum(begins - np.bincount(spans[:, 1], minlength=size + 1))[:size]
        trained[0] = 0  # nothing predicts the first token of a row
        return cls(np.bincount(lengths, minlength=size), trained)

    def kept_at(self, maximum: int) -> tuple[float, float]:
        """(share of rows that stay whole, share of trained tokens that stay) when rows are cut to `maximum`."""
        rows, tokens = int(self.rows.sum()), int(self.trained.sum())
        whole, trained = int(self.rows[: maximum + 1].sum()), int(self.trained[:maximum].sum())
        return (whole / rows if rows else 1.0, trained / tokens if tokens else 1.0)

    def to_json(self) -> dict[str, Any]:
        """`bins`: [from, to, rows]; `curve`: [maximum, share of rows whole, share of trained tokens], for a line that
        is dragged."""
        import numpy as np

        longest = len(self.rows) - 1
        width = max(1, -(-longest // BINS))
        bins = [
            [start, min(start + width, longest + 1) - 1, int(self.rows[start : start + width].sum())]
            for start in range(0, longest + 1, width)
        ]
        points = np.unique(np.geomspace(1, max(1, longest), POINTS).round().astype(int)).tolist()
        curve = [[point, *(round(share, 6) for share in self.kept_at(point))] for point in points]
        return {"longest": longest, "bins": bins, "curve": curve}
