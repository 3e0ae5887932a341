"""How a byte-level tokenizer cuts a text into the pieces it makes tokens of, as patterns of Python's own `re`. Torch-free.

The patterns are written for Oniguruma, and Unicode grows: only characters whose category was the same in Unicode 3.2 and is
today are taken, so that both agree on what a letter is. Whatever is not understood here is left to the tokenizer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from qlora_engine import parsing

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel does where it cuts by itself."""
ASCII, WIDE = range(0x80), range(0x3000)
"""Texts beyond the second are left to the tokenizer: they have few spaces, and their words are seldom met again."""
SPACES = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
PIECE = re.compile(
    r"\\p\{([A-Z][a-z]?)\}|(\\s)|(\\S)|\\[rnt]|\\[^\w\s]|(\[\^?)|(\])|\(\?i:['a-z|]*\)|\(\?[:!=]|([.^$]|\(\?|\}\+|&&|\\|\()|[^\\]",
    re.DOTALL,
)
"""A piece of a pattern; the last group is what means something else to the two, or is not understood."""


def steps_of(part: Any, inner: str) -> Sequence[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one behind another; `inner` is the name under which it stores several."""
    if part is None:
        return []
    stored = parsing.object_from_json(part.__getstate__())
    steps = stored.get(inner)
    return list(steps) if isinstance(steps, list) else [stored]


def patterns_of(steps: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """The patterns of a pre-tokenizer's steps, applied one behind another; None where it does anything else."""
    if not steps:
        return None
    *cuts, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    found = [_pattern(step) for step in cuts]
    if last.get("use_regex", True):
        found.append(GPT2)
    return None if not found or None in found else tuple(step for step in found if step)


def _pattern(step: Mapping[str, Any]) -> str | None:
    if step.get("type") == "Digits":
        return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    is_isolated = step.get("behavior") == "Isolated" and not step.get("invert")
    pattern = step.get("pattern")
    if step.get("type") != "Split" or not is_isolated or not isinstance(pattern, Mapping):
        return None
    found = pattern.get("Regex")
    return found if isinstance(found, str) else None


def compiled(pattern: str, characters: range) -> re.Pattern[str] | None:
    """The same pattern for texts of these characters; None where it holds what the two read otherwise."""
    found = _translated(pattern, characters)
    try:
        made = None if found is None else re.compile(found)
    except re.error:
        return None
    return None if made is None or made.groups or made.match("") else made


def _translated(pattern: str, characters: range) -> str | None:
    out: list[str] = []
    is_class = False
    place = 0
    while place < len(pattern):
        piece = PIECE.match(pattern, place)
        if piece is None:
            return None
        category, space, other, opens, closes, unknown = piece.groups()
        if (unknown and (not is_class or unknown in ("&&", "\\"))) or (is_class and (opens or other)):
            return None
        inner = SPACES if space or other else _ranges(_of_category(category, characters)) if category else ""
        if inner or category:
            out.append(inner if is_class else f"[{'^' if other else ''}{inner}]")
        else:
            out.append(piece[0])
        is_class = bool(opens) or (is_class and not closes)
        place = piece.end()
    return "".join(out)


def foreign(characters: range) -> re.Pattern[str]:
    """Finds a character that is not to be decided here."""
    return re.compile(f"[^{_ranges(_settled(characters))}]")


def _of_category(name: str, characters: range) -> Iterator[int]:
    return (code for code in _settled(characters) if unicodedata.category(chr(code)).startswith(name))


@cache
def _settled(characters: range) -> Sequence[int]:
    """LATIN SMALL LETTER LONG S is left out: it is an s to a pattern that takes small letters for large ones."""
    old = unicodedata.ucd_3_2_0
    return [
        code
        for code in characters
        if code != 0x17F and "Cn" != unicodedata.category(chr(code)) == old.category(chr(code))
    ]


def _ranges(codes: Iterable[int]) -> str:
    """The inside of a class of `re`; one that nothing is in, where there are none."""
    found: list[list[int]] = []
    for code in codes:
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in found) or "\\U0010ffff"
