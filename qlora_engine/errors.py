"""The three ways things end badly: a user can mend it, a user wanted it, or it is our bug.

`EngineError` carries the sentence a person reads and the next step. `Cancelled` is not an error.
Everything else is a bug and keeps its traceback for the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class EngineError(Exception):
    """A problem that the person at the keyboard can mend.

    Args:
        code: stable, machine-readable, dotted: `model.missing`, `data.empty`.
        message: what happened, with the numbers, one sentence.
        hint: the next step, one sentence or command. Never "see the log".
        is_input_error: True when the input was wrong (exit code 2), False for a failure (exit code 1).
    """

    def __init__(self, code: str, message: str, hint: str = "", *, is_input_error: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.is_input_error = is_input_error

    @property
    def exit_code(self) -> int:
        return 2 if self.is_input_error else 1

    def __str__(self) -> str:
        return f"{self.message}; hint: {self.hint}" if self.hint else self.message


class Cancelled(Exception):  # noqa: N818 - being cancelled is not an error
    """The person asked to stop; nothing went wrong."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the closest known word, or the whole list when nothing is close."""
    candidates = sorted(known)
    close = get_close_matches(word, candidates, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(candidates)
