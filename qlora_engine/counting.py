"""A number with its noun and its verb: `1 row is`, `2 rows are`. Light."""

from __future__ import annotations

_IRREGULAR = {"are": "is", "were": "was", "have": "has", "do": "does"}
_HISSING = ("s", "x", "z", "ch", "sh", "o")


def counted(count: int, noun: str, verb: str = "", *, of: int | None = None) -> str:
    """`noun` is singular and takes an s, `verb` is that of several: counted(1, "row", "carry") is `1 row carries`. With
    `of`, `1 of 40 rows carries`."""
    named = noun if (count if of is None else of) == 1 else f"{noun}s"
    head = f"{count:,} {named}" if of is None else f"{count:,} of {of:,} {named}"
    return f"{head} {agreeing(count, verb)}" if verb else head


def agreeing(count: int, verb: str) -> str:
    """The verb of `count` things, from that of several."""
    if count != 1:
        return verb
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}es" if verb.endswith(_HISSING) else f"{verb}s"


def pronoun(count: int) -> str:
    """What follows in the next clause."""
    return "it" if count == 1 else "they"
