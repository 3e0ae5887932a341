"""Finds rows that say nearly the same: equal but for case and spacing, or nine tenths of their pieces alike. Torch-free.

MinHash over windows of eight bytes (Broder 1997), 16 minima a row, candidates by bands of four; deterministic.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

MINIMA = 16
BAND = 4
ALIKE = 14
"""Minima of 16 that must agree: about nine tenths of the pieces."""
SHORTEST_BYTES = 160
"""Shorter texts differ in what matters: `12 + 13` and `12 + 14` are two questions."""
WINDOW = 8
LARGEST_SHARE, LARGEST = 0.1, 20
"""A group larger than both is a template that many rows share, not one row written twice."""
SPACES = re.compile(r"\s+")
STOPS = re.compile(r"[.,!?;:]+(?=\s|$)")


def loose(text: str) -> str:
    """The text without what two copies of a row differ in: case, spacing, stops."""
    return SPACES.sub(" ", STOPS.sub("", text.casefold())).strip()


def loose_key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def signatures(texts: Sequence[str]) -> Any:
    """(rows, 16) uint32; all zero for a text too short to compare so."""
    import numpy as np

    found = np.zeros((len(texts), MINIMA), np.uint32)
    pieces = [text.encode("utf-8", "surrogatepass") for text in texts]
    places = [place for place, piece in enumerate(pieces) if len(piece) >= SHORTEST_BYTES]
    if not places:
        return found
    lengths = np.array([len(pieces[place]) - WINDOW + 1 for place in places], np.int64)
    windows = [
        np.ndarray((n,), "<u8", pieces[p], strides=(1,))
        for p, n in zip(places, lengths.tolist(), strict=True)
    ]
    hashed = mixed(np.concatenate(windows))
    rows = np.repeat(np.arange(len(places)), lengths)
    taken = (hashed & np.uint64(3)) == 0
    hashed, rows = hashed[taken], rows[taken]
    present, starts = np.unique(rows, return_index=True)
    multipliers = mixed(np.arange(1, MINIMA + 1, dtype=np.uint64)) | np.uint64(1)
    for column, factor in enumerate(multipliers):
        minima = np.minimum.reduceat((hashed * factor) >> np.uint64(32), starts)
        found[np.array(places)[present], column] = minima.astype(np.uint32)
    return found


def mixed(values: Any) -> Any:
    """splitmix64's finisher: every bit depends on every other."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def groups(keys: Any, loose_keys: Any, minima: Any) -> Any:
    """For each row the number of its group: rows of the same content, or of nearly the same, share one.

    `keys` and `loose_keys` are (rows,) uint64 hashes, `minima` as from `signatures`.
    """
    import numpy as np

    rows = len(keys)
    parent = np.arange(rows)
    _join_equal(parent, loose_keys)
    largest = max(LARGEST, int(LARGEST_SHARE * rows))
    compared = np.flatnonzero(minima.any(axis=1))
    for start in range(0, MINIMA, BAND):
        _join_alike(parent, compared, minima, start)
    found = _roots(parent)
    sizes = np.bincount(found, minlength=rows)
    found = np.where(sizes[found] > largest, np.arange(rows), found)
    _join_equal(found, keys)
    return _roots(found)


def _join_equal(parent: Any, keys: Any) -> None:
    """Rows of equal keys point to the first of them."""
    import numpy as np

    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    target = first[inverse]
    for row in np.flatnonzero(target != np.arange(len(keys))).tolist():
        _union(parent, row, int(target[row]))


def _join_alike(parent: Any, compared: Any, minima: Any, start: int) -> None:
    import numpy as np

    band = minima[compared, start : start + BAND].astype(np.uint64)
    hashed = np.zeros(len(compared), np.uint64)
    for column in range(BAND):
        hashed = mixed(hashed * np.uint64(31) + band[:, column])
    order = np.argsort(hashed, kind="stable")
    edges = np.concatenate([[0], np.flatnonzero(np.diff(hashed[order])) + 1, [len(order)]]).astype(np.int64)
    for bucket in np.flatnonzero(np.diff(edges) > 1).tolist():
        members = compared[order[edges[bucket] : edges[bucket + 1]]]
        alike = (minima[members[1:]] == minima[members[0]]).sum(axis=1) >= ALIKE
        for row in members[1:][alike].tolist():
            _union(parent, row, int(members[0]))


def _union(parent: Any, row: int, other: int) -> None:
    a, b = _root(parent, row), _root(parent, other)
    parent[max(a, b)] = min(a, b)


def _root(parent: Any, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row


def _roots(parent: Any) -> Any:
    while True:
        shorter = parent[parent]
        if (shorter == parent).all():
            return parent
        parent = shorter
