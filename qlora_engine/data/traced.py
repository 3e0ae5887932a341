"""Text that remembers where it came from, through everything a chat template does to it. Torch-free.

A `Traced` is a string whose characters each belong to an origin: 0 is the template's own text, any other number a part
of the row (an answer's text, a call's arguments ...). A template that strips, splits, slices, joins or adds such
strings keeps the account; so one render tells where every answer stands, and which markers are only quoted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

Run = tuple[int, int]
"""(characters, origin)."""
TEMPLATE = 0


class Traced(str):
    """A string with an account of its characters; `runs` cover it exactly. An empty one has none."""

    __slots__ = ("runs",)
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, text: str, origin: int) -> Traced:
        """A text of one origin."""
        return cls.made(str.__str__(text), ((len(text), origin),) if text else ())

    @classmethod
    def made(cls, text: str, runs: Iterable[Run]) -> Traced:
        made = cls(text)
        made.runs = tuple(runs)
        return made

    def part(self, start: int, end: int) -> Traced:
        """The characters [start, end)."""
        return Traced.made(str.__getitem__(self, slice(start, end)), _cut(self.runs, start, end))

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> Traced:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self.part(start, max(start, stop))
            return joined([self.part(i, i + 1) for i in range(start, stop, step)])
        index = operator.index(key)
        index += len(self) if index < 0 else 0
        if not 0 <= index < len(self):
            raise IndexError("string index out of range")
        return self.part(index, index + 1)

    def __iter__(self) -> Iterator[Traced]:
        return (self.part(i, i + 1) for i in range(len(self)))

    def __add__(self, other: str) -> Traced:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Traced:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> Traced:
        return joined([self] * operator.index(count))

    __rmul__ = __mul__

    def strip(self, chars: str | None = None) -> Traced:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> Traced:
        return self.part(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None) -> Traced:
        return self.part(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str) -> Traced:
        return self.part(len(prefix) if prefix and self.startswith(prefix) else 0, len(self))

    def removesuffix(self, suffix: str) -> Traced:
        return self.part(0, len(self) - (len(suffix) if suffix and self.endswith(suffix) else 0))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Any]:
        return _found_again(self, str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Any]:
        return _found_again(self, str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[Any]:
        return _found_again(self, str.splitlines(self, keepends))

    def partition(self, sep: str) -> Any:
        return tuple(_found_again(self, list(str.partition(self, sep))))

    def rpartition(self, sep: str) -> Any:
        return tuple(_found_again(self, list(str.rpartition(self, sep))))

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> Traced:
        if not old or old not in self:
            return self if old else _same(self, str.replace(self, old, new, count))
        return joined(self.split(old, count), new)

    def upper(self) -> Traced:
        return _same(self, str.upper(self))

    def lower(self) -> Traced:
        return _same(self, str.lower(self))

    def title(self) -> Traced:
        return _same(self, str.title(self))

    def capitalize(self) -> Traced:
        return _same(self, str.capitalize(self))

    def join(self, parts: Iterable[str]) -> Traced:
        return joined(list(parts), self)


def joined(pieces: Iterable[Any], between: str = "") -> Traced:
    """The pieces one after another; whatever is not traced is the template's own."""
    texts: list[str] = []
    runs: list[Run] = []
    for number, piece in enumerate(pieces):
        if number and between:
            texts.append(between)
            _append(runs, between)
        text = piece if isinstance(piece, str) else str(piece)
        texts.append(text)
        _append(runs, text)
    return Traced.made("".join(texts), runs)


def origins_in(value: Any) -> Iterator[int]:
    """The origins of every traced text inside a value of lists and objects."""
    if isinstance(value, Traced):
        yield from (origin for _, origin in value.runs if origin != TEMPLATE)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from origins_in(key)
            yield from origins_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from origins_in(inner)


def opaque(text: str, *sources: Any) -> str:
    """What a function made of traced sources: all of it is theirs, also what the function added (quotes, commas)."""
    origin = next((o for source in sources for o in origins_in(source)), TEMPLATE)
    return text if origin == TEMPLATE else Traced.of(text, origin)


def aligned(text: str, sources: Iterable[Any]) -> str:
    """What a function (`format`, `%`) made of template text and traced texts: each is found again, the rest is the
    template's. A source that was changed on the way makes the whole text its own."""
    traced = [source for source in sources if isinstance(source, Traced) and source]
    pieces: list[str] = []
    place = 0
    for source in traced:
        found = str.find(text, source, place)
        if found < 0:
            return opaque(text, *traced)
        pieces += [str.__getitem__(text, slice(place, found)), source]
        place = found + len(source)
    return joined([*pieces, str.__getitem__(text, slice(place, None))]) if traced else text


def traced(value: Any, origin_of: Callable[[], int], change: Callable[[str], str] = str) -> Any:
    """A copy of a JSON value whose texts, keys too, are traced."""
    if isinstance(value, str):
        return Traced.of(change(value), origin_of())
    if isinstance(value, dict):
        return {traced(k, origin_of, change): traced(v, origin_of, change) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [traced(inner, origin_of, change) for inner in value]
    return value


def _append(runs: list[Run], text: str) -> None:
    """The account of `text` at the end of `runs`, neighbours of one origin as one."""
    new = text.runs if isinstance(text, Traced) else (((len(text), TEMPLATE),) if text else ())
    for size, origin in new:
        if runs and runs[-1][1] == origin:
            runs[-1] = (runs[-1][0] + size, origin)
        else:
            runs.append((size, origin))


def _cut(runs: Iterable[Run], start: int, end: int) -> Iterator[Run]:
    place = 0
    for size, origin in runs:
        left, right = max(start, place), min(end, place + size)
        if left < right:
            yield right - left, origin
        place += size


def _found_again(text: Traced, pieces: list[str], sep: str | None = None) -> list[Any]:
    """Pieces that stand in `text` in this order, `sep` or white space between them, with their account."""
    found, place = [], 0
    for piece in pieces:
        start = place if sep is not None else str.find(text, piece, place)
        found.append(text.part(start, start + len(piece)))
        place = start + len(piece) + len(sep or "")
    return found


def _same(text: Traced, changed: str) -> Traced:
    """A changed text: character by character where it kept its length."""
    if len(changed) == len(text):
        return Traced.made(changed, text.runs)
    return Traced.made(changed, ((len(changed), text.runs[0][1]),) if text and changed else ())
