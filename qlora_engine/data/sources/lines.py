"""Finds where the rows of a JSON-lines file begin and end, so that each can be read alone. Torch-free."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from qlora_engine.data.sources.encodings import Encoding
from qlora_engine.data.sources.opening import as_text
from qlora_engine.data.sources.places import LINES
from qlora_engine.data.sources.reading import MAX_ROW_BYTES, BadRow, Reading
from qlora_engine.parsing import Malformed, from_json

BLOCK_BYTES = 8 << 20
SHORT_LINE = 32
"""Lines up to so many bytes are looked at: blank ones are no rows."""


def is_lines(head: bytes, kind: str, encoding: Encoding) -> bool:
    """Whether a file of JSON that begins with `head` holds a row a line, whatever its name says."""
    text = codecs.getincrementaldecoder(encoding.codec)(encoding.errors).decode(head)
    found = [line for line in text.split("\n") if line.strip()]
    first = found[0].strip() if found else ""
    objects = [_object(line) for line in found[:20]]
    if kind in LINES:
        return any(objects) or not (first.startswith("[") or first == "{")
    return len(found) > 1 and isinstance(objects[0], dict) and found[1].lstrip().startswith("{")


def _object(line: str) -> Any:
    try:
        value = from_json(line)
    except Malformed:
        return None
    return value if isinstance(value, dict | list) else None


def index(path: Path, check: Callable[[], None]) -> tuple[Any, str]:
    """(array (rows, 2) int64 of first and last+1 byte of each line that is no blank one, sha256 of the file)."""
    import numpy as np

    digest, at, breaks = hashlib.sha256(), 0, []
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            check()
            digest.update(block)
            breaks.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 10).astype(np.int64) + at)
            at += len(block)
        ends = np.concatenate([*breaks, np.array([at], np.int64)])
        starts = np.concatenate([np.array([_after_bom(stream)], np.int64), ends[:-1] + 1])
        keep = ends > starts
        for place in np.flatnonzero(keep & (ends - starts <= SHORT_LINE)).tolist():
            stream.seek(int(starts[place]))
            keep[place] = bool(stream.read(int(ends[place] - starts[place])).strip())
    return np.stack([starts[keep], ends[keep]], axis=1), digest.hexdigest()


def _after_bom(stream: IO[bytes]) -> int:
    stream.seek(0)
    return 3 if stream.read(3) == codecs.BOM_UTF8 else 0


def copied(stream: IO[bytes], reading: Reading, encoding: Encoding) -> Iterator[bytes | BadRow]:
    """The lines of a packed file, or of one in another encoding, as UTF-8."""
    if encoding.is_utf8:
        yield from _split(stream, reading)
        return
    try:
        with as_text(stream, encoding.codec, encoding.errors, "\n") as text:
            while line := text.readline(MAX_ROW_BYTES):
                reading.check()
                try:
                    yield line.encode("utf-8")
                except UnicodeEncodeError:
                    yield BadRow(f"it is not {encoding.words} text")
    except UnicodeDecodeError:
        yield BadRow(f"it is not {encoding.words} text, and the file cannot be read further")


def _split(stream: IO[bytes], reading: Reading) -> Iterator[bytes | BadRow]:
    is_first, is_middle = True, False
    while line := stream.readline(MAX_ROW_BYTES + 1):
        if is_first and line.startswith(codecs.BOM_UTF8):
            line = line[3:]
        is_first = False
        if is_middle or len(line) > MAX_ROW_BYTES:
            if not is_middle:
                yield BadRow(f"it is larger than {MAX_ROW_BYTES >> 20} MiB")
            reading.check()
            is_middle = not line.endswith(b"\n")
            continue
        yield line
