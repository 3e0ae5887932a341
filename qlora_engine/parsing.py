"""The one door to JSON and TOML that other programs, crashes and people wrote: what cannot be used is a `Malformed`.

Python's own readers answer a text nested 100,000 deep with RecursionError, and a number of 6,000 digits with an error
that no caller expects. Nothing else in the two packages parses these formats; a test looks for it.
"""

from __future__ import annotations

import json
from typing import Any

DEEPEST = 128
LONGEST_NUMBER = 64
DEEP = f"it is nested more than {DEEPEST} levels deep"
LONG = f"it holds a number of more than {LONGEST_NUMBER} digits"


class Malformed(ValueError):  # noqa: N818 - what the text is
    """A text that is no usable JSON or TOML. `reason` is what is wrong, `line` and `position` (characters) where (None:
    not known)."""

    def __init__(
        self, words: str, reason: str = "", line: int | None = None, position: int | None = None
    ) -> None:
        super().__init__(words)
        self.reason = reason or words
        self.line = line
        self.position = position


def from_json(text: str | bytes | bytearray) -> Any:
    """The value of a JSON text.

    Raises:
        Malformed: not JSON, nested too deep, or with a number too long to be one.
    """
    try:
        value = json.loads(text, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise Malformed(str(error), error.msg, error.lineno) from error
    except RecursionError as error:
        raise Malformed(DEEP) from error
    except UnicodeDecodeError as error:
        raise Malformed(f"it is not UTF-8 text: {error.reason} at byte {error.start}") from error
    _refuse_deep(text, value)
    return value


def row_from_json(text: str, at: int = 0) -> tuple[Any, int]:
    """The value that begins at `at` and the place behind it. A key that an object has twice is refused: one of its two
    values would be lost in silence.

    Raises:
        Malformed: as in `from_json`, or a key twice.
    """
    try:
        value, end = _ROWS.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise Malformed(str(error), error.msg, error.lineno, error.pos) from error
    except RecursionError as error:
        raise Malformed(DEEP) from error
    _refuse_deep(text if not at else text[at:end], value)
    return value, end


def end_of_json(text: str, at: int) -> int | None:
    """Behind the value that begins at `at`, whatever it holds; None where it is not well-formed."""
    try:
        return _ANY.raw_decode(text, at)[1]
    except (ValueError, RecursionError):
        return None


def object_from_json(text: str | bytes | bytearray) -> dict[str, Any]:
    """The object of a JSON text.

    Raises:
        Malformed: as in `from_json`, or another kind of value.
    """
    value = from_json(text)
    if not isinstance(value, dict):
        raise Malformed(f"it holds {_kind(value)}, not an object")
    return value


def from_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        Malformed: not TOML, nested too deep, or with a number too long to be one.
    """
    import tomllib

    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Malformed(str(error)) from error
    except RecursionError as error:
        raise Malformed(DEEP) from error
    except ValueError as error:  # int() refuses more than 4,300 digits
        raise Malformed(LONG) from error
    _walk(value)
    return value


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise Malformed(LONG)
    return int(digits)


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"the key {twice[:60]!r} occurs twice")
    return found


_ROWS = json.JSONDecoder(object_pairs_hook=_no_twice, parse_int=_whole)
_ANY = json.JSONDecoder(parse_int=str)


def _refuse_deep(text: str | bytes | bytearray, value: Any) -> None:
    """Only a text with that many opening brackets can be that deep, and few have as many: data files are not walked."""
    is_text = isinstance(text, str)
    openers = text.count("[" if is_text else b"[") + text.count("{" if is_text else b"{")  # type: ignore[arg-type]
    if openers > DEEPEST:
        _walk(value)


def _walk(value: Any) -> None:
    """Raise Malformed where `value` is too deep or holds too long a number; without recursion."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise Malformed(DEEP)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list):
        return value
    if isinstance(value, int) and value.bit_length() > LONGEST_NUMBER * 4:
        raise Malformed(LONG)
    return []


def _kind(value: Any) -> str:
    kinds = {type(None): "nothing", list: "a list", str: "a text", bool: "true or false"}
    return kinds.get(type(value), "a number")
