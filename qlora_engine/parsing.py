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
    """A text that is no usable JSON or TOML. `reason` is what is wrong, `line` where (None: not known)."""

    def __init__(self, words: str, reason: str = "", line: int | None = None) -> None:
        super().__init__(words)
        self.reason = reason or words
        self.line = line


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
