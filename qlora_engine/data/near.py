"""Finds rows that say nearly the same: equal but for case and spacing, or nine tenths of their pieces alike. Torch-free.

MinHash over windows of eight bytes (Broder 1997), the least of each of 16 bins a row, candidates by bands of four;
deterministic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

MINIMA = 16
BAND = 4
ALIKE = 14
"""Minima of 16 that must agree: about nine tenths of the pieces."""
SHORTEST_BYTES = 160
"""Shorter texts differ in what matters: `12 + 13` and `12 + 14` are two questions."""
WINDOW = 8
CHOOSING = 0x9E3779B97F4A7C15
THREE_QUARTERS = 3 << 62
EMPTY = 0xFFFFFFFF
COMPARED_ROWS = 1 << 16
"""Rows that are compared at a time: a million at once are hundreds of megabytes."""
LARGEST_SHARE, LARGEST = 0.1, 20
"""A group larger than both is a template that many rows share, not one row written twice."""
ALIKE_BYTES = bytes.maketrans(b",!?;:\t\n\r\v\f", b".....     ")
"""Every stop is a full stop, every white space a space."""


def loose(text: str) -> bytes:
    """The text without what two copies of a row differ in: case, spacing, stops at the ends of words."""
    folded = text.lower() if text.isascii() else " ".join(text.casefold().split())
    found, before = folded.encode("utf-8", "surrogatepass").translate(ALIKE_BYTES) + b" ", b""
    while found != before:
        before = found
        found = found.replace(b". ", b" ").replace(b"  ", b" ")
    return found.strip()


def loose_key(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()


def signatures(pieces: Sequence[bytes]) -> Any:
    """(rows, 16) uint32; all zero for a text (as `loose` leaves it) too short to compare so.

    Every window falls into one of 16 bins by its hash, and each bin keeps its least (Li, Owen & Zhang 2012). Of the
    windows a quarter is looked at, chosen by what they hold, so that copies choose the same.
    """
    import numpy as np

    found = np.zeros((len(pieces), MINIMA), np.uint32)
    places = [place for place, piece in enumerate(pieces) if len(piece) >= SHORTEST_BYTES]
    if not places:
        return found
    joined = b"".join(pieces[place] for place in places)
    windows = np.ndarray((len(joined) - WINDOW + 1,), "<u8", joined, strides=(1,))
    sizes = np.array([len(pieces[place]) for place in places], np.int64)
    taken = np.flatnonzero(windows * np.uint64(CHOOSING) >= np.uint64(THREE_QUARTERS))
    edges = np.cumsum(sizes)
    rows = np.searchsorted(edges, taken, "right")
    is_whole = taken + WINDOW <= edges[rows]
    hashed, rows = mixed(windows[taken[is_whole]]), rows[is_whole]
    bins = rows * MINIMA + (hashed >> np.uint64(60)).astype(np.int64)
    minima = np.full(len(places) * MINIMA, EMPTY, np.uint32)
    np.minimum.at(minima, bins, (hashed >> np.uint64(20)).astype(np.uint32))
    found[np.array(places)] = minima.reshape(len(places), MINIMA)
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
    sizes = np.bincount(parent, minlength=rows)
    found = np.where(sizes[parent] > largest, np.arange(rows), parent)
    _join_equal(found, keys)
    return found


def _join_equal(parent: Any, keys: Any) -> None:
    """Rows of equal keys share a group."""
    import numpy as np

    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    _join(parent, np.arange(len(keys)), first[inverse])


def _join_alike(parent: Any, compared: Any, minima: Any, start: int) -> None:
    """Each row of a bucket is compared with the bucket's first."""
    import numpy as np

    band = minima[compared, start : start + BAND].astype(np.uint64)
    hashed = np.zeros(len(compared), np.uint64)
    for column in range(BAND):
        hashed = mixed(hashed * np.uint64(31) + band[:, column])
    order = np.argsort(hashed, kind="stable")
    ranked = compared[order]
    later = np.flatnonzero(np.diff(hashed[order]) == 0) + 1
    places = np.arange(len(ranked))
    places[later] = 0
    firsts = np.maximum.accumulate(places)
    for piece in np.split(later, range(COMPARED_ROWS, len(later), COMPARED_ROWS)):
        rows, others = ranked[piece], ranked[firsts[piece]]
        alike = (minima[rows] == minima[others]).sum(axis=1) >= ALIKE
        _join(parent, rows[alike], others[alike])


def _join(parent: Any, rows: Any, others: Any) -> None:
    """Each of `rows` and the one of `others` beside it share a group. `parent` names the least row of each group, before
    and after."""
    import numpy as np

    while True:
        a, b = parent[rows], parent[others]
        is_apart = a != b
        if not is_apart.any():
            return
        rows, others, a, b = rows[is_apart], others[is_apart], a[is_apart], b[is_apart]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        parent[:] = _roots(parent)


def _roots(parent: Any) -> Any:
    while True:
        shorter = parent[parent]
        if (shorter == parent).all():
            return parent
        parent = shorter
