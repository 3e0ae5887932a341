"""Cuts a plain text into rows of a chosen length at the ends of paragraphs or sentences. Torch-free.

Rows are slices of the document's own tokens: put together they are the document, and a row repeats the end of the one
before only as far as the overlap asks.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
SENTENCE = re.compile(r"[.!?\u3002\uff01\uff1f\u0964][\"'\u201d\u2019)\]]*\s+|\n")
EARLIEST = 0.5
"""A row is never cut shorter than this share of its length for the sake of a paragraph or a sentence."""
DEFAULT_TOKENS = 2048


def pieces(text: str, starts: Sequence[int], length: int, overlap: int) -> Iterator[tuple[int, int]]:
    """(first token, last+1) of each row; `starts` are the characters at which tokens begin."""
    total = len(starts)
    step = min(overlap, max(0, length // 2 - 1))
    paragraphs, sentences = _ends(text, starts, PARAGRAPH), _ends(text, starts, SENTENCE)
    begin = 0
    while total - begin > length:
        end = _cut(paragraphs, begin, length) or _cut(sentences, begin, length) or begin + length
        yield begin, end
        begin = end - step
    yield begin, total


def _ends(text: str, starts: Sequence[int], pattern: re.Pattern[str]) -> list[int]:
    """Tokens that begin right behind a match."""
    found: list[int] = []
    for match in pattern.finditer(text):
        place = bisect_left(starts, match.end())
        if place < len(starts) and (not found or found[-1] != place):
            found.append(place)
    return found


def _cut(places: Sequence[int], begin: int, length: int) -> int | None:
    """The last of `places` that leaves a row of at most `length` and not much less."""
    index = bisect_right(places, begin + length) - 1
    return places[index] if index >= 0 and places[index] >= begin + max(1, int(length * EARLIEST)) else None
