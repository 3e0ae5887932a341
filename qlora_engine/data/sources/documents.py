"""Reads JSON that is no list of lines: one list, one object around a list, objects one after another. Torch-free.

A broken row costs itself: reading goes on where the next row begins, known by the first key of the first row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from qlora_engine.data.sources.reading import (
    MAX_ROW_BYTES,
    BadRow,
    Reading,
    Row,
    as_row,
    json_reason,
)
from qlora_engine.errors import EngineError
from qlora_engine.parsing import Malformed, end_of_json, row_from_json

LIST_KEYS = ("data", "rows", "examples", "train", "instances")
WRAPPED = re.compile(r'\s*\{\s*"(' + "|".join(LIST_KEYS) + r')"\s*:\s*(?=\[)')
CHUNK = 1 << 20
BROKEN = -1
SEPARATORS = re.compile(r"[\s,]*")
NEXT_ROW = r"\{\s*%s\s*:"
ANY_ROW = re.compile(r"\}\s*,\s*(?=\{)")


class _Text:
    """A text that grows at its end as it is read, and is forgotten at its beginning."""

    def __init__(self, stream: TextIO, reading: Reading) -> None:
        self._stream, self._reading = stream, reading
        self.text, self.at, self.is_whole, self._step = "", 0, False, CHUNK

    def more(self) -> bool:
        """Read on, twice as far each time for a row that needs it; False at the end."""
        self._reading.check()
        piece = self._stream.read(self._step)
        self.is_whole = not piece
        self.text, self.at = self.text[self.at :] + piece, 0
        self._step = min(self._step * 2, MAX_ROW_BYTES)
        return bool(piece)

    def settle(self) -> None:
        self._step = CHUNK

    def skip(self) -> str:
        """Past blanks and commas; the character there, empty at the end."""
        while True:
            found = SEPARATORS.match(self.text, self.at)
            assert found is not None
            self.at = found.end()
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]


def read(stream: TextIO, reading: Reading) -> Iterator[Row | BadRow]:
    """Every row of a JSON document.

    Raises:
        EngineError: it holds no rows at all.
    """
    text = _Text(stream, reading)
    first = text.skip()
    if first == "{" and (start := WRAPPED.match(text.text, text.at)):
        text.at = start.end() + 1
        yield from _elements(text, reading, is_list=True)
        _tell_of(_beside(text), start[1], reading)
    elif first == "[":
        text.at += 1
        yield from _elements(text, reading, is_list=True)
    elif first == "{":
        yield from _objects(text, reading)
    elif first:
        raise EngineError("data.json", f"{reading.name} holds no list of rows", "write a list of objects")


def _objects(text: _Text, reading: Reading) -> Iterator[Row | BadRow]:
    """One object around a list of rows, or rows that follow each other without a list."""
    value = _value(text)
    if isinstance(value, BadRow):
        yield value
        if not _resync(text, None):
            return
    elif text.skip():
        yield as_row(value)
    else:
        key = next((key for key in LIST_KEYS if isinstance(value.get(key), list)), None)
        if key is not None:
            _tell_of({name: _size(one) for name, one in value.items() if name != key}, key, reading)
        yield from (as_row(row) for row in ([value] if key is None else value[key]))
        return
    yield from _elements(text, reading, is_list=False)


def _beside(text: _Text) -> dict[str, int | None]:
    """What follows the list of rows in the object around it: each key, and how many rows it lists."""
    if text.skip() == "]":
        text.at += 1
    found: dict[str, int | None] = {}
    while text.skip() == '"':
        key = _value(text)
        if text.skip() != ":" or not isinstance(key, str):
            break
        text.at += 1
        found[key] = _skipped(text)
        if found[key] == BROKEN:
            break
    return found


def _skipped(text: _Text) -> int | None:
    """Past one value; how many rows it lists, one after the other since they may be as many as the file's own."""
    if text.skip() != "[":
        return BROKEN if isinstance(_value(text), BadRow) else None
    text.at += 1
    count = 0
    while text.skip() not in ("]", ""):
        if isinstance(_value(text), BadRow):
            return BROKEN
        count += 1
    text.at += 1
    return count


def _size(value: Any) -> int | None:
    return len(value) if isinstance(value, list) else None


def _tell_of(beside: Mapping[str, int | None], read: str, reading: Reading) -> None:
    """Name what is not read: a list beside the rows is often the part that was meant to be held out."""
    for key, count in beside.items():
        listed = "" if count is None or count == BROKEN else f", a list of {count:,},"
        reading.notes.append(
            f"{reading.name} has {key!r}{listed} beside {read!r}, which is not read"
            + ("; rows to hold out go into a file of their own (data.held_out_path)" if listed else "")
        )


def _elements(text: _Text, reading: Reading, *, is_list: bool) -> Iterator[Row | BadRow]:
    first_key: str | None = None
    while True:
        mark = text.skip()
        if not mark:
            if is_list:
                reading.notes.append(f"{reading.name} ends in the middle of its list of rows")
            return
        if mark == "]":
            return
        value = _value(text)
        row = value if isinstance(value, BadRow) else as_row(value)
        if first_key is None and isinstance(row, dict) and row:
            first_key = next(iter(row))
        yield row
        if (
            isinstance(value, BadRow)
            and text.text[text.at : text.at + 1] == mark
            and not _resync(text, first_key)
        ):
            return


def _value(text: _Text) -> Any:
    """The value at the place, which moves behind it; a BadRow leaves the place where it is unless its end is known."""
    while True:
        try:
            value, end = row_from_json(text.text, text.at)
        except Malformed as error:
            if _may_be_cut(error, text):
                if len(text.text) - text.at >= MAX_ROW_BYTES:
                    return BadRow(f"it is larger than {MAX_ROW_BYTES >> 20} MiB")
                if text.more():
                    continue
            if error.position is None:  # well-formed, but not wanted: a key twice, a number of 6,000 digits
                text.at = end_of_json(text.text, text.at) or text.at
            return BadRow(json_reason(error, text.text))
        if end == len(text.text) and not text.is_whole and text.more():
            continue  # a number may go on
        text.at = end
        text.settle()
        return value


def _may_be_cut(error: Malformed, text: _Text) -> bool:
    """Whether the text may only have been too short so far."""
    if text.is_whole or error.position is None:
        return False
    return error.position >= len(text.text) - 16 or error.reason.startswith("Unterminated")


def _resync(text: _Text, first_key: str | None) -> bool:
    """To where the next row begins; False when there is none."""
    text.at += 1
    pattern = (
        ANY_ROW
        if first_key is None
        else re.compile(NEXT_ROW % re.escape(json.dumps(first_key, ensure_ascii=False)))
    )
    while True:
        found = pattern.search(text.text, text.at)
        if found:
            text.at = found.end() if first_key is None else found.start()
            return True
        text.at = max(text.at, len(text.text) - 4096)
        if not text.more():
            return False
