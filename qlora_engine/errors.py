"""The three ways things end badly: a user can mend it, a user wanted it, or it is our bug.

`EngineError` carries the sentence a person reads and the next step. `Cancelled` is not an error.
Everything else is a bug and keeps its traceback for the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

LISTED_AT_MOST = 40


class EngineError(Exception):
    """A problem that the person at the keyboard can mend.

    Args:
        code: stable, machine-readable, dotted: `model.missing`, `data.empty`.
        message: what happened, with the numbers, one sentence.
        hint: the next step, one sentence or command. Never "see the log".
        is_input_error: True when the input was wrong (exit code 2), False for a failure (exit code 1).
        accept: what `ResumeJob.accept` has to name so that the same is done all the same; empty where nothing would do.
    """

    def __init__(
        self,
        code: str,
        message: str,
        hint: str = "",
        *,
        is_input_error: bool = True,
        accept: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.is_input_error = is_input_error
        self.accept = tuple(accept)

    @property
    def exit_code(self) -> int:
        return 2 if self.is_input_error else 1

    def __str__(self) -> str:
        return f"{self.message}; hint: {self.hint}" if self.hint else self.message


class Cancelled(Exception):  # noqa: N818 - being cancelled is not an error
    """The person asked to stop; nothing went wrong."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word of which this is a slip of the fingers, or the known ones when there is none."""
    candidates = sorted(known)
    for close in get_close_matches(word, candidates, n=3, cutoff=0.6):
        if is_slip(word, close):
            return f"did you mean {close!r}?"
    shown = candidates if len(candidates) <= LISTED_AT_MOST else candidates[: LISTED_AT_MOST - 1]
    rest = len(candidates) - len(shown)
    return "known: " + ", ".join(shown) + (f" and {rest} more" if rest else "")


def is_slip(word: str, wanted: str) -> bool:
    """True when each part of `word` (between dots, lines and spaces) is a typo of its part of `wanted`: one letter
    wrong, missing, too many or swapped with the next in every four. A word that merely resembles it is no typo."""
    parts, others = (re.split(r"[._/ -]+", text.lower()) for text in (word, wanted))
    if len(parts) != len(others):
        return edits("".join(parts), "".join(others)) <= 1
    pairs = list(zip(parts, others, strict=True))
    return all(edits(a, b) <= max(1, max(len(a), len(b)) // 4) for a, b in pairs) and any(
        a == b or len(b) > 2 for a, b in pairs
    )


def edits(one: str, other: str) -> int:
    """The fewest letters to change, add, drop or swap with the next to make one of the other."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        older, before, row = before, row, [i]
        for j, wanted in enumerate(other, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            is_swapped = i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted
            row.append(min(best, older[j - 2] + 1) if is_swapped else best)
    return row[-1]
