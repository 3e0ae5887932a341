"""Numbers of rows as people write them: `3, 8-12`. Light: the settings and the window read them too."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

Ranges = tuple[tuple[int, int], ...]
"""First and last number of each, ascending, none touching the next."""
MOST_RANGES = 200
"""More are no longer a text that a person reads."""
_PIECE = re.compile(r"([0-9]{1,12})(?:-([0-9]{1,12}))?")
_DASH = re.compile(r"\s*[-\u2013]\s*")


def parsed(text: str) -> Ranges:
    """Raises:
    ValueError: with the piece that is neither a number nor a range.
    """
    found = []
    for piece in re.split(r"[,;\s]+", _DASH.sub("-", text.strip())):
        if not piece:
            continue
        match = _PIECE.fullmatch(piece)
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else 0
        if not 0 < first <= last:
            raise ValueError(piece)
        found.append((first, last))
    return joined(found)


def of_numbers(numbers: Iterable[int]) -> Ranges:
    return joined([(number, number) for number in numbers])


def text_of(ranges: Ranges) -> str:
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)


def count(ranges: Ranges) -> int:
    return sum(last - first + 1 for first, last in ranges)


def holds(ranges: Ranges, number: int) -> bool:
    place = bisect_right(ranges, (number, 1 << 62)) - 1
    return place >= 0 and number <= ranges[place][1]


def among(ranges: Ranges, numbers: Any) -> Any:
    """(rows,) bool: which of an array of numbers are in `ranges`."""
    import numpy as np

    edges = np.array([edge for first, last in ranges for edge in (first, last + 1)], np.int64)
    return np.searchsorted(edges, numbers, side="right") % 2 == 1


def within(ranges: Ranges, total: int) -> Ranges:
    """Those up to number `total`."""
    return tuple((first, min(last, total)) for first, last in ranges if first <= total)


def added(text: str, more: str) -> str:
    """Both together, as short as it goes; a text that names no rows counts for nothing."""
    return text_of(joined([*readable(text), *readable(more)]))


def without(text: str, number: int) -> str:
    return text_of(_removed(readable(text), number, number))


def closed_up(text: str, first: int, last: int) -> str:
    """When rows `first` to `last` are gone: those behind them have moved up."""
    gone = last - first + 1
    kept = _removed(readable(text), first, last)
    return text_of(joined([(a, b) if b < first else (a - gone, b - gone) for a, b in kept]))


def readable(text: str) -> Ranges:
    """As `parsed`; a text that is still to be corrected names no rows."""
    try:
        return parsed(text)
    except ValueError:
        return ()


def _removed(ranges: Ranges, first: int, last: int) -> Ranges:
    found = []
    for begin, end in ranges:
        pieces = ((begin, min(end, first - 1)), (max(begin, last + 1), end))
        found += [(a, b) for a, b in pieces if a <= b]
    return tuple(found)


def joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same numbers, in order, with nothing that touches apart."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)
