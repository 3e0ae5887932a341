"""Rows of one shape: where a template puts their texts is learned from one traced render and filled in for the others.

Every row filled in is compared with a plain render of that very row, so what was learned is never taken on trust; a row
that differs is traced. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from qlora_engine.data.conversation import Message
from qlora_engine.data.traced import TEMPLATE

if TYPE_CHECKING:
    from qlora_engine.data.answers import Found

Span = tuple[int, int]
Key = tuple[Any, ...]
TRIMS: tuple[Callable[[str], str], ...] = (
    str,
    str.strip,
    str.lstrip,
    str.rstrip,
    lambda text: text.strip("\n"),
    lambda text: text.lstrip("\n"),
    lambda text: text.rstrip("\n"),
)
"""What templates do to a whole text, the most likely first."""
TRIMMED = "the chat template trims white space around answers"
"""The one note that is of a row's own texts; every other one is of its shape."""
MOST_SHAPES = 4096
MOST_VARIANTS = 4
TRIES = 16
"""After so many rows of a shape that were seldom filled in rightly, it is not tried again."""


@dataclass(frozen=True)
class Filled:
    """A row ready to be tokenized; everything in bytes of its UTF-8 text. `slots` are what comes from the row."""

    text: str
    size: int
    spans: list[Span]
    slots: list[Span]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Found) -> Filled:
        """From a traced row."""
        text = str.__str__(found.text)
        slots: list[Span] = []
        place = 0
        for size, origin in found.text.runs:
            if origin != TEMPLATE:
                slots.append((place, place + size))
            place += size
        if text.isascii():
            return cls(text, len(text), list(found.spans), slots, found.notes)
        places = {c for span in (*found.spans, *slots) for c in span}
        at = dict(_bytes_before(text, sorted(places)))
        spans = [(at[a], at[b]) for a, b in found.spans]
        return cls(text, len(_utf8(text)), spans, [(at[a], at[b]) for a, b in slots], found.notes)


@dataclass(frozen=True)
class Slot:
    """A text of the row: which message's `text` or `reasoning`, and how the template trims it (a place in `TRIMS`)."""

    message: int
    name: str
    trim: int

    def value(self, messages: Sequence[Message]) -> str:
        message = messages[self.message]
        text = message.text if self.name == "text" else message.reasoning or ""
        return TRIMS[self.trim](text) if self.trim else text


@dataclass(frozen=True)
class Skeleton:
    """The template's own texts and the slots between them. `inserted` are pieces that the template does not write,
    `spans` (first, last+1) the pieces that are trained."""

    pieces: tuple[str | Slot, ...]
    inserted: frozenset[int]
    spans: tuple[Span, ...]
    notes: tuple[str, ...]

    def filled(self, messages: Sequence[Message], plain: str) -> Filled | None:
        """The row; None unless the template, which wrote `plain`, wrote the same."""
        texts = [p if isinstance(p, str) else p.value(messages) for p in self.pieces]
        text = whole = "".join(texts)
        if self.inserted:
            text = "".join(t for i, t in enumerate(texts) if i not in self.inserted)
        if text != plain:
            return None
        sizes = map(len, texts) if whole.isascii() else (len(_utf8(t)) for t in texts)
        edges = [0, *accumulate(sizes)]
        slots = [(edges[i], edges[i + 1]) for i, p in enumerate(self.pieces) if not isinstance(p, str)]
        notes = (TRIMMED, *self.notes) if self._trims(messages, texts) else self.notes
        return Filled(whole, edges[-1], [(edges[a], edges[b]) for a, b in self.spans], slots, notes)

    def _trims(self, messages: Sequence[Message], texts: Sequence[str]) -> bool:
        """Whether an answer of this very row lost white space; one of nothing else has no piece left."""
        said = {
            piece.message: text
            for piece, text in zip(self.pieces, texts, strict=True)
            if isinstance(piece, Slot) and piece.name == "text"
        }
        return any(m.is_answer and said.get(number, "") != m.text for number, m in enumerate(messages))


@dataclass
class Variants:
    """The skeletons of one shape, and how often they fitted."""

    known: list[Skeleton] = field(default_factory=list)
    fits: int = 0
    misses: int = 0

    @property
    def is_hopeless(self) -> bool:
        return self.misses > TRIES and self.misses > self.fits

    def filled(self, messages: Sequence[Message], plain: str) -> Filled | None:
        for skeleton in self.known:
            found = skeleton.filled(messages, plain)
            if found is not None:
                self.fits += 1
                return found
        self.misses += 1
        return None


Shapes = dict[Key, Variants]


def shape_of(messages: Sequence[Message]) -> Key | None:
    """What a template's layout of a talk can depend on besides its words; None for a talk with calls, results or names."""
    found = []
    for m in messages:
        if m.calls or m.name or m.call_id is not None or m.role == "tool":
            return None
        found.append((m.role, m.is_trained, _fullness(m.text), m.reasoning and _fullness(m.reasoning)))
    return tuple(found)


def _fullness(text: str) -> int:
    """1 when it is empty, 2 when it is white space, 3 otherwise."""
    return (2 if text.isspace() else 3) if text else 1


def quotes(messages: Sequence[Message], firsts: Collection[str], words: re.Pattern[str]) -> bool:
    """Whether a text spells something that the template may look for; `firsts` are the first letters of all such."""
    for message in messages:
        for text in (message.text, message.reasoning):
            if text and any(first in text for first in firsts) and words.search(text):
                return True
    return False


def learn(shapes: Shapes, key: Key, found: Found, messages: Sequence[Message], plain: str) -> None:
    """Keep what a traced row shows, if it can be filled in and gives `plain` again."""
    if key not in shapes and len(shapes) >= MOST_SHAPES:
        return
    variants = shapes.setdefault(key, Variants())
    if len(variants.known) >= MOST_VARIANTS:
        return
    skeleton = _skeleton(found, messages)
    if skeleton is None or skeleton.filled(messages, plain) is None:
        variants.misses += 1
    else:
        variants.known.append(skeleton)


def _skeleton(found: Found, messages: Sequence[Message]) -> Skeleton | None:
    cuts = sorted({c for span in (*found.spans, *found.inserted) for c in span})
    pieces: list[str | Slot] = []
    at: dict[int, int] = {}
    place = 0
    for size, origin in found.text.runs:
        inner = [c for c in cuts if place < c < place + size] if origin == TEMPLATE else []
        for start, end in pairwise([place, *inner, place + size]):
            text = str.__getitem__(found.text, slice(start, end))
            piece = text if origin == TEMPLATE else _slot(text, found.parts[origin], messages)
            if piece is None:
                return None
            at[start] = len(pieces)
            pieces.append(piece)
        place += size
    at[place] = len(pieces)
    if any(cut not in at for cut in cuts):
        return None
    inserted = frozenset(i for a, b in found.inserted for i in range(at[a], at[b]))
    notes = tuple(note for note in found.notes if note != TRIMMED)
    return Skeleton(tuple(pieces), inserted, tuple((at[a], at[b]) for a, b in found.spans), notes)


def _slot(text: str, part: tuple[int, str], messages: Sequence[Message]) -> Slot | None:
    message, name = part
    if name not in ("text", "reasoning") or message < 0:
        return None
    slots = (Slot(message, name, trim) for trim in range(len(TRIMS)))
    return next((slot for slot in slots if slot.value(messages) == text), None)


def _bytes_before(text: str, places: Sequence[int]) -> Iterator[tuple[int, int]]:
    last = size = 0
    for place in places:
        size += len(_utf8(text[last:place]))
        last = place
        yield place, size


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
