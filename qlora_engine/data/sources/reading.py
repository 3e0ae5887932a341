"""What every reader of a kind of file shares: rows, bad rows with their reason, and notes. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qlora_engine.parsing import Malformed, row_from_json

Row = dict[str, Any]
MAX_ROW_BYTES = 64 << 20
SURROGATES = "it holds bytes that are no text in this encoding, or half a surrogate pair"


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, and why."""

    reason: str


class UnreadableRow(Exception):  # noqa: N818 - carries a reason, is counted, never seen by a person as an error
    """A stored row that cannot be read; its text is the reason."""


@dataclass
class Reading:
    """What a reader says besides rows, and whom it asks whether to go on."""

    name: str
    check: Callable[[], None] = lambda: None
    notes: list[str] = field(default_factory=list)


def parse_line(line: bytes) -> Row:
    """One line of JSON as a row.

    Raises:
        UnreadableRow: it is none, with the reason.
    """
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UnreadableRow(f"not UTF-8 text at byte {error.start + 1}") from None
    if not text:
        raise UnreadableRow("it is empty")
    try:
        value, end = row_from_json(text)
    except Malformed as error:
        what = "zero bytes instead of text" if "\0" in text else json_reason(error, text)
        raise UnreadableRow(what) from None
    if end != len(text):
        raise UnreadableRow(f"broken JSON: more text behind its end at character {end + 1}")
    row = as_row(value)
    if isinstance(row, BadRow):
        raise UnreadableRow(row.reason)
    if "\\ud" in text or "\\uD" in text:
        _whole(row)
    return row


def _whole(row: Row) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UnreadableRow(SURROGATES) from None


def json_reason(error: Malformed, text: str = "") -> str:
    """Why a JSON text cannot be read, in a few words."""
    if error.position is None:
        return error.reason
    if error.position >= len(text.rstrip()) or error.reason.startswith("Unterminated"):
        return "broken JSON: it ends in the middle"
    return f"broken JSON: {error.reason} at character {error.position + 1}"


def as_row(value: Any) -> Row | BadRow:
    """An object is a row; a list of objects is a conversation."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return {"messages": value}
    kind = {
        "list": "a list",
        "str": "a text",
        "int": "a number",
        "float": "a number",
        "bool": "true or false",
    }
    return BadRow(f"a row must be an object, not {kind.get(type(value).__name__, 'empty')}")


def to_line(row: Row) -> bytes | BadRow:
    """A row as one line of JSON, without its end."""
    try:
        return json.dumps(row, ensure_ascii=False, default=_plain).encode("utf-8")
    except UnicodeEncodeError:
        return BadRow(SURROGATES)
    except (RecursionError, ValueError) as error:
        return BadRow(f"it cannot be kept: {short(error)}")


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return str(value)


def short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
