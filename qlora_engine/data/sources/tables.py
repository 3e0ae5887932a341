"""Reads CSV and TSV: separator, quoting and ragged rows are found, not demanded. Torch-free."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TextIO

from qlora_engine.counting import counted
from qlora_engine.data.sources.reading import MAX_ROW_BYTES, BadRow, Reading, Row
from qlora_engine.errors import EngineError

SAMPLE_CHARS = 256 * 1024
SAMPLE_ROWS = 200
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
MAX_RESTARTS = 100
"""After so many quotes that are never closed, the rest of the file is one bad row."""


@dataclass(frozen=True)
class Shape:
    """How a table is written."""

    separator: str
    quote: str = '"'
    escape: str | None = None
    has_quotes: bool = True

    def reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.has_quotes else csv.QUOTE_NONE
        return csv.reader(
            lines, delimiter=self.separator, quotechar=self.quote, escapechar=self.escape,
            doublequote=self.escape is None, quoting=quoting, strict=True,
        )  # fmt: skip

    @property
    def words(self) -> str:
        quotes = f"quoted with {self.quote}" if self.has_quotes else "without quotes"
        return f"separated by {SEPARATORS[self.separator]}, {quotes}"


def find_shape(sample: str, kind: str) -> Shape:
    """The way of writing under which the first rows are most alike; ties go to the usual one of the file's kind."""
    first = "\t" if kind == ".tsv" else ","
    separators = sorted(SEPARATORS, key=lambda s: s != first)
    quotes = ['"'] + (["'"] if "'" in sample else [])
    shapes = [Shape(s, quote) for s in separators for quote in quotes]
    if '\\"' in sample:
        shapes += [Shape(s, '"', "\\") for s in separators]
    shapes += [Shape(s, '"', None, False) for s in separators]
    return max(shapes, key=lambda shape: _fit(sample, shape))


def _fit(sample: str, shape: Shape) -> tuple[float, int, int]:
    """(share of rows with the header's width, width, quoted cells), zeros for one column."""
    widths: Counter[int] = Counter()
    rows = bad = 0
    header = 0
    try:
        for row in shape.reader(iter(sample.splitlines(keepends=True))):
            if not row:
                continue
            rows += 1
            header = header or len(row)
            widths[len(row)] += 1
            if rows >= SAMPLE_ROWS:
                break
    except csv.Error:
        bad = 1 if rows and len(sample) >= SAMPLE_CHARS else 2
    if header < 2 or not rows:
        return 0.0, 0, 0
    quoted = sample.count(f"{shape.separator}{shape.quote}") if shape.has_quotes else 0
    return widths[header] / (rows + bad), header, quoted


class _Readable(Protocol):
    def readline(self, size: int = -1, /) -> str: ...


class _Lines:
    """The physical lines of a table, counted, with those of the row under way kept so that it can be begun again."""

    def __init__(self, stream: _Readable, reading: Reading) -> None:
        self._stream, self._reading = stream, reading
        self._again: list[str] = []
        self._row: list[str] = []
        self.number, self.row_chars = 0, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.row_chars > MAX_ROW_BYTES:
            raise csv.Error("a quote opened here is never closed")
        line = self._again.pop() if self._again else self._stream.readline(MAX_ROW_BYTES)
        if not line:
            raise StopIteration
        self.number += 1
        if self.number % 4096 == 0:
            self._reading.check()
        self._row.append(line)
        self.row_chars += len(line)
        return line

    def row_done(self) -> None:
        self._row.clear()
        self.row_chars = 0

    def begin_again_after_first(self) -> int:
        """Give the lines of a broken row back but for its first; how many were given back."""
        back = self._row[1:]
        self._again.extend(reversed(back))
        self.number -= len(back)
        self.row_done()
        return len(back)


def read(stream: TextIO, reading: Reading, kind: str) -> Iterator[Row | BadRow]:
    """Every row as header -> cell.

    Raises:
        EngineError: the header cannot be used.
    """
    sample = stream.read(SAMPLE_CHARS)
    shape = find_shape(sample, kind)
    if shape != Shape("\t" if kind == ".tsv" else ","):
        reading.notes.append(f"{reading.name}: {shape.words}")
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _Lines(_Joined(sample, stream), reading)
    names: list[str] | None = None
    restarts = 0
    while True:
        try:
            for cells in shape.reader(iter(lines)):
                lines.row_done()
                if names is None:
                    names = _header(cells, reading.name) if cells else None
                elif cells:
                    yield _row(names, cells, lines.number)
            return
        except csv.Error as error:
            number = lines.number
            restarts += 1
            back = lines.begin_again_after_first()
            yield BadRow(f"line {number - back}: {_reason(error)}")
            if restarts > MAX_RESTARTS and back:
                reading.notes.append(
                    f"{reading.name}: too many unclosed quotes; the rest from line {number} was not read"
                )
                return


class _Joined:
    """The sample, then the rest of the stream, line by line."""

    def __init__(self, sample: str, rest: TextIO) -> None:
        self._sample, self._rest = io.StringIO(sample, newline=""), rest

    def readline(self, size: int = -1, /) -> str:
        line = self._sample.readline(size)
        if line.endswith(("\n", "\r")):
            return line
        return line + self._rest.readline(size)


def _header(cells: list[str], name: str) -> list[str]:
    names = [cell.strip() or f"column {place}" for place, cell in enumerate(cells, 1)]
    twice = [column for column, count in Counter(names).items() if count > 1]
    if twice:
        raise EngineError("data.csv", f"{name} has two columns named {twice[0]!r}", "rename one of them")
    return names


def _row(names: list[str], cells: list[str], line: int) -> Row | BadRow:
    if len(cells) > len(names):
        return BadRow(f"line {line}: {counted(len(cells), 'value')} for {counted(len(names), 'column')}")
    return dict(zip(names, cells, strict=False))


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text or "never closed" in text:
        return "a quote opened here is never closed"
    if "expected after" in text:
        return "text stands behind a closing quote"
    return text
