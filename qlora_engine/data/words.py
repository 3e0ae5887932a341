"""Tokens of texts, piece by piece: those of a piece that a tokenizer has met once are looked up. Torch-free.

A text is cut as a byte-level tokenizer cuts it (`pretokens`), or at the words of one that writes spaces as `▁` (`spaced`), and
what is made of a piece is asked of the tokenizer's own model. The
first texts, and one of many later, go both ways; a tokenizer for which they differ, or that does anything else with a text,
makes all of them itself.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from qlora_engine.data import pretokens
from qlora_engine.data.markers import TokenizerKey
from qlora_engine.data.spaced import SPACE, Spaced, words_of

Cut = Callable[[str, bool], list[str] | None]
"""The pieces of a part of a text between markers, told whether it is the first."""
MOST_PIECES, LONGEST_PIECE = 100_000, 64
"""What is kept in memory: some twenty megabytes at most."""
TRIES, TRIED_LATER, MOST_MARKERS_TRIED = 64, 128, 100
TRIAL = (
    "He's I'LL we'd've 'twas don't  x\n\n  y \t z\r\n\r\n 12345 1,234.50 a1b2 --== ...!\n \x0b\x0c \x1c\x7f `a_b`=={c}; end  ",
    "caf\u00e9 na\u00efve \u201cso\u201d \u2014 \u041f\u0440\u0438\u0432\u0435\u0442, \u03ba\u03cc\u03c3\u03bc\u03b5 \u00a0\u2003x\u2028\u00bd \u0664\u0662 e\u0301 \u05d0\u05d1 \u0e01\u0e33",
)


class _Pieces(dict[str, bytes]):
    """int32 tokens of each piece met so far, as bytes; of any other when it is asked for."""

    def __init__(self, model: Any, written: Callable[[str], str]) -> None:
        super().__init__()
        self._model, self._written = model, written

    def __missing__(self, piece: str) -> bytes:
        found = array("i", [token.id for token in self._model.tokenize(self._written(piece))]).tobytes()
        if len(piece) <= LONGEST_PIECE and len(self) < MOST_PIECES:
            self[piece] = found
        return found


class _Cuts:
    """Cuts texts of some characters into pieces; what a pattern leaves out is missing in them."""

    def __init__(self, steps: Sequence[str], characters: range) -> None:
        found = [pretokens.compiled(step, characters) for step in steps]
        self.is_known = None not in found
        self._earlier = [re.compile(f"({step.pattern})") for step in found[:-1] if step is not None]
        last = found[-1]
        self._last = last.findall if last is not None else None

    def pieces(self, text: str, is_first: bool) -> list[str] | None:
        """None where one is left out. Whether the text is the first does not matter."""
        assert self._last is not None
        found = self._last(text) if not self._earlier else self._in_steps(text)
        return found if "".join(found) == text else None

    def _in_steps(self, text: str) -> list[str]:
        assert self._last is not None
        parts = [text]
        for step in self._earlier:
            parts = [piece for part in parts for piece in step.split(part) if piece]
        return [piece for part in parts for piece in self._last(part)]


class _ByteLevel:
    """The cuts of a byte-level tokenizer, whose model reads bytes as letters."""

    def __init__(self, patterns: Sequence[str], *, is_nfc: bool) -> None:
        self._patterns, self._is_nfc = patterns, is_nfc
        self._ascii = _Cuts(patterns, pretokens.ASCII)
        self._letters = _letters_of_bytes()
        self.is_known = self._ascii.is_known

    @cached_property
    def _wide(self) -> tuple[_Cuts, re.Pattern[str]]:
        return _Cuts(self._patterns, pretokens.WIDE), pretokens.foreign(pretokens.WIDE)

    def of(self, text: str) -> Cut | None:
        """How parts of a text are cut; None for a text that is the tokenizer's own affair."""
        if text.isascii():
            return self._ascii.pieces
        cuts, foreign = self._wide
        if not cuts.is_known or foreign.search(text):
            return None
        is_changed = self._is_nfc and not unicodedata.is_normalized("NFC", text)
        return None if is_changed else cuts.pieces

    def written(self, piece: str) -> str:
        return piece.encode().decode("latin-1").translate(self._letters)


class _AtSpaces:
    """The words of a tokenizer that writes spaces as a sign; a text that has the sign itself is its own affair."""

    is_known = True

    def __init__(self, spaced: Spaced) -> None:
        self._spaced = spaced

    def of(self, text: str) -> Cut | None:
        return None if SPACE in text else self._spaced.pieces

    def written(self, piece: str) -> str:
        return piece.replace(" ", SPACE)


class Words:
    """The quick way of one tokenizer. `is_right` until a text shows otherwise."""

    def __init__(
        self, backend: Any, cuts: _ByteLevel | _AtSpaces, markers: Sequence[tuple[str, int]]
    ) -> None:
        self._backend, self._cuts = backend, cuts
        self._table = _Pieces(backend.model, cuts.written)
        self._markers = {text: array("i", [number]).tobytes() for text, number in markers}
        longest_first = sorted(self._markers, key=len, reverse=True)
        self._marker = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        self._left_to_try = TRIES
        self.is_right = cuts.is_known and self._agrees([*TRIAL, _with_all(longest_first)])

    def encoded(self, texts: Sequence[str]) -> list[Any]:
        """(tokens,) int32 of each text."""
        import numpy as np

        if not self.is_right:
            return _by_backend(self._backend, texts)
        self.is_right = self._agrees(self._tried(texts))
        if not self.is_right:
            return _by_backend(self._backend, texts)
        quick = [self._bytes(text) for text in texts]
        left = iter(_by_backend(self._backend, [t for t, q in zip(texts, quick, strict=True) if q is None]))
        return [next(left) if found is None else np.frombuffer(found, np.int32) for found in quick]

    def _tried(self, texts: Sequence[str]) -> Sequence[str]:
        """The first texts of all, later every so many of a block's."""
        if self._left_to_try <= 0:
            return texts[::TRIED_LATER]
        tried = texts[: self._left_to_try]
        self._left_to_try -= len(tried)
        return tried

    def _agrees(self, texts: Sequence[str]) -> bool:
        mine = [self._bytes(text) for text in texts]
        right = _by_backend(self._backend, texts)
        return all(m is None or m == ids.tobytes() for m, ids in zip(mine, right, strict=True))

    def _bytes(self, text: str) -> bytes | None:
        """int32 tokens; None for a text that is the tokenizer's own affair."""
        cut = self._cuts.of(text)
        if cut is None:
            return None
        found: list[bytes] = []
        for place, part in enumerate(self._marker.split(text) if self._marker else [text]):
            if place % 2:
                found.append(self._markers[part])
            elif part:
                pieces = cut(part, place == 0)
                if pieces is None:
                    return None
                found.extend(map(self._table.__getitem__, pieces))
        return b"".join(found)


def encoded(texts: Sequence[str], tokenizer: Any) -> list[Any]:
    """(tokens,) int32 of each text, without special tokens around it: what the tokenizer gives."""
    words = _words(TokenizerKey(tokenizer), tokenizer.backend_tokenizer.get_vocab_size())
    return _by_backend(tokenizer.backend_tokenizer, texts) if words is None else words.encoded(texts)


def _by_backend(backend: Any, texts: Sequence[str]) -> list[Any]:
    import numpy as np

    if not texts:
        return []
    backend.no_truncation()
    backend.no_padding()
    found = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(one.ids, np.int32) for one in found]


@lru_cache(maxsize=4)
def _words(key: TokenizerKey, size: int) -> Words | None:
    """None for a tokenizer that does anything with a text besides cutting it. `size` tells one that has got new tokens."""
    backend = key.tokenizer.backend_tokenizer
    if getattr(backend.model, "dropout", None) or backend.encode_special_tokens:
        return None  # random, or markers are not always seen
    cuts = _cuts_of(backend)
    markers = backend.get_added_tokens_decoder()
    kinds = {(t.lstrip or t.rstrip or t.single_word or not t.content, t.normalized) for t in markers.values()}
    if cuts is None or len(kinds) > 1 or any(is_special for is_special, _ in kinds):
        return None
    if isinstance(cuts, _AtSpaces) and any(is_normalized for _, is_normalized in kinds):
        return None  # the space before the text is put there before they are looked for
    found = Words(backend, cuts, [(token.content, number) for number, token in markers.items()])
    return found if found.is_right else None


def _cuts_of(backend: Any) -> _ByteLevel | _AtSpaces | None:
    spaced = words_of(backend)
    if spaced is not None:
        return _AtSpaces(spaced)
    kinds = [step.get("type") for step in pretokens.steps_of(backend.normalizer, "normalizers")]
    patterns = pretokens.patterns_of(pretokens.steps_of(backend.pre_tokenizer, "pretokenizers"))
    if kinds not in ([], ["NFC"]) or patterns is None:
        return None
    return _ByteLevel(patterns, is_nfc=bool(kinds))


def _with_all(markers: Sequence[str]) -> str:
    return "".join(f"a {marker}\n{marker}{marker} b" for marker in markers[:MOST_MARKERS_TRIED])


@lru_cache(maxsize=1)
def _letters_of_bytes() -> dict[int, int]:
    """The letter that ByteLevel writes for each byte: printable ones stand for themselves (Radford et al. 2019)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    return {byte: byte for byte in shown} | {byte: 256 + place for place, byte in enumerate(others)}
