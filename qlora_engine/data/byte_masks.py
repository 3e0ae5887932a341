"""Which tokens of a batch are trained, by the bytes that each token stands for: no list of offsets, no loop over tokens.

Exact where the bytes of a row's tokens add up to its text; any other row is left to the tokenizer's own offsets. Torch-free.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qlora_engine.data import words
from qlora_engine.data.markers import TokenizerKey
from qlora_engine.data.pretokens import steps_of
from qlora_engine.data.skeleton import Filled
from qlora_engine.data.spaced import EACH, FIRST_WORD, NEVER, SPACE, spacing_of

UNKNOWN = 1 << 20
"""Bytes of a token that may stand for anything: no row that has one adds up."""


@dataclass(frozen=True, eq=False)
class ByteLengths:
    """`of_token` (vocabulary,) int64. `is_nfc`: texts are normalized first, which may change them. `prepends`: whether pieces
    of text between added tokens (`is_added`) get a space that is none of their own (`spaced`)."""

    of_token: Any
    is_added: Any
    is_nfc: bool
    prepends: str


@dataclass(frozen=True, eq=False)
class Masked:
    """A row's tokens: `ids` (tokens,) int32, `trained` (tokens,) bool."""

    ids: Any
    trained: Any


def byte_lengths(tokenizer: Any) -> ByteLengths | None:
    """None for a tokenizer whose tokens do not stand for bytes of the text."""
    return _byte_lengths(TokenizerKey(tokenizer))


@lru_cache(maxsize=4)
def _byte_lengths(key: TokenizerKey) -> ByteLengths | None:
    import numpy as np

    tokenizer = key.tokenizer
    backend = tokenizer.backend_tokenizer
    normalizers = steps_of(backend.normalizer, "normalizers")
    splitters = steps_of(backend.pre_tokenizer, "pretokenizers")
    kinds = [str(step.get("type")) for step in (*normalizers, *splitters)]
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    is_byte_level = "ByteLevel" in kinds and all(chr(c) in vocabulary for c in range(33, 127))
    spacing = spacing_of(backend)
    is_spaced = spacing is not None
    if not (is_byte_level or is_spaced):
        return None
    count = max(vocabulary.values(), default=-1) + 1
    found, is_added = np.full(count, UNKNOWN, np.int64), np.zeros(count, bool)
    for word, number in vocabulary.items():
        found[number] = len(word) if is_byte_level else _spaced_bytes(word)
    for number, word in added.items():
        found[number], is_added[number] = len(word.encode()), True
    if is_spaced and isinstance(tokenizer.unk_token_id, int):
        found[tokenizer.unk_token_id] = UNKNOWN
    return ByteLengths(found, is_added, "NFC" in kinds, NEVER if spacing is None else spacing.prepends)


def _spaced_bytes(word: str) -> int:
    if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
        return 1
    return len(word.replace(SPACE, " ").encode("utf-8", "surrogatepass"))


def masked(
    rows: Sequence[Filled], tokenizer: Any, lengths: ByteLengths, marker_ids: frozenset[int]
) -> list[Masked | None]:
    """Tokens and mask of each row; None where bytes do not tell, or where a marker was made of the row's own text."""
    import numpy as np

    ids = words.encoded([row.text for row in rows], tokenizer)
    flat = np.concatenate(ids)
    firsts = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
    sizes = _sizes(flat, firsts, lengths, np.array([row.text.startswith(" ") for row in rows]))
    ends = np.cumsum(sizes)
    bases = np.concatenate([[0], ends])[firsts]
    is_exact = np.diff(bases) == np.array([row.size for row in rows])
    if lengths.is_nfc:
        is_exact &= np.array([r.text.isascii() or unicodedata.is_normalized("NFC", r.text) for r in rows])
    starts = ends - sizes
    is_exact[_taken(rows, flat, starts, ends, firsts, bases, marker_ids)] = False
    trained = _trained(rows, starts, ends, firsts, bases)
    edges = firsts.tolist()
    return [
        Masked(ids[i], trained[edges[i] : edges[i + 1]]) if exact else None
        for i, exact in enumerate(is_exact.tolist())
    ]


def _sizes(flat: Any, firsts: Any, lengths: ByteLengths, has_space: Any) -> Any:
    """Bytes of each token, without the space that it was given. `has_space` (rows,): whether a row begins with one of its own.
    A later piece that does may be given none: its row does not add up."""
    import numpy as np

    sizes = lengths.of_token[flat]
    if lengths.prepends != NEVER:
        is_added = lengths.is_added[flat]
        begins = np.zeros(len(flat) + 1, bool)
        begins[firsts[:-1]] = True if lengths.prepends == EACH else ~has_space
        if lengths.prepends != FIRST_WORD:
            begins[1:] |= is_added
        sizes = sizes - (begins[:-1] & ~is_added)
    return sizes


def _trained(rows: Sequence[Filled], starts: Any, ends: Any, firsts: Any, bases: Any) -> Any:
    """(tokens,) bool: those that begin inside a span. One that has nothing but white space before its answer (` Yes`)
    is the answer's; any other that begins before it is the prompt's."""
    import numpy as np

    spans = [(row, a, b) for row, filled in enumerate(rows) for a, b in filled.spans]
    if not spans:
        return np.zeros(len(starts), bool)
    where = np.array(spans, np.int64)
    begins, stops = bases[where[:, 0]] + where[:, 1], bases[where[:, 0]] + where[:, 2]
    first, last = np.searchsorted(starts, begins, "left"), np.searchsorted(starts, stops, "left")
    holder = np.clip(np.searchsorted(starts, begins, "right") - 1, 0, len(starts) - 1)
    for place in np.flatnonzero((starts[holder] < begins) & (begins < ends[holder])).tolist():
        row, start, _ = spans[place]
        before = rows[row].text.encode("utf-8", "surrogatepass")[starts[holder[place]] - bases[row] : start]
        if not before.decode("utf-8", "replace").strip():
            first[place] = holder[place]
    own, behind = (
        firsts[where[:, 0]],
        firsts[where[:, 0] + 1],
    )  # a row that does not add up stays within its tokens
    first, last = np.clip(first, own, behind), np.clip(last, own, behind)
    changes = np.zeros(len(starts) + 1, np.int32)
    np.add.at(changes, first, 1)
    np.add.at(changes, np.maximum(first, last), -1)
    return np.cumsum(changes[:-1]) > 0


def _taken(
    rows: Sequence[Filled],
    flat: Any,
    starts: Any,
    ends: Any,
    firsts: Any,
    bases: Any,
    marker_ids: frozenset[int],
) -> Any:
    """The rows in which a marker was made of characters of the row."""
    import numpy as np

    is_marker = np.zeros(max(int(flat.max(initial=0)), *marker_ids, 0) + 1, bool)
    is_marker[list(marker_ids)] = True
    places = np.flatnonzero(is_marker[flat])
    slots = [(row, a, b) for row, filled in enumerate(rows) for a, b in filled.slots]
    if not slots or not len(places):
        return places[:0]
    where = np.array(slots, np.int64)
    slot_starts, slot_ends = bases[where[:, 0]] + where[:, 1], bases[where[:, 0]] + where[:, 2]
    after = np.searchsorted(slot_ends, starts[places], "right")
    inside = np.flatnonzero(after < len(slots))
    is_taken = slot_starts[after[inside]] < ends[places[inside]]
    return np.searchsorted(firsts, places[inside][is_taken], "right") - 1
