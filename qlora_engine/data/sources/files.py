"""One file's rows: found where they lie, or converted once into the cache. Torch-free."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qlora_engine.config import DataSettings
from qlora_engine.data import cache
from qlora_engine.data.sources import columnar, documents, encodings, lines, places, tables, texts
from qlora_engine.data.sources.opening import as_text, opened, unreadable
from qlora_engine.data.sources.places import Place
from qlora_engine.data.sources.reading import BadRow, Reading, Row, to_line
from qlora_engine.parsing import object_from_json

SETTLED_SECONDS = 2.0
"""A file changed so recently may change again within the same tick of its clock, so that it is read anew next time."""
Check = Callable[[], None]


@dataclass(frozen=True, eq=False)
class FileRows:
    """The rows of one file: `spans` (rows, 2) int64 are their first and last+1 bytes in `lines_path`; `bad` maps the
    place of a row in the file (from 0) to why it could not be read."""

    name: str
    lines_path: Path
    spans: Any
    bad: Mapping[int, str]
    sha256: str
    encoding: str
    notes: tuple[str, ...]
    stamp: tuple[int, int]

    def __len__(self) -> int:
        return len(self.spans)


def of_place(place: Place, settings: DataSettings, check: Check) -> FileRows:
    import numpy as np

    reading = Reading(place.name, check)
    try:
        stamp = stamp_of(place.path)
        key = cache.key_of(["file", str(place.path.resolve()), place.member, stamp, settings.encoding])
        kept = cache.find("rows", key)
        if kept is not None and (found := _loaded(kept, place.path)) is not None:
            return found
        kind = kind_of(place, settings.encoding)
        if kind.is_in_place:
            spans, sha256 = lines.index(place.path, check)
            meta = {"sha256": sha256, "encoding": kind.encoding_words, "notes": [], "bad": {}}
            return _kept(
                place.name, key, place.path, lambda folder: np.save(folder / "spans.npy", spans), meta, stamp
            )
        return converted(
            place.name, key, lambda: rows_of(place, kind, reading), reading, place.path, kind.encoding_words
        )
    except OSError as error:
        raise unreadable(place.path, error) from error


@dataclass(frozen=True)
class _Kind:
    """How a file is read: as lines where it lies, or through a reader."""

    encoding: encodings.Encoding | None
    is_lines: bool
    is_in_place: bool

    @property
    def encoding_words(self) -> str:
        return self.encoding.words if self.encoding else ""


def kind_of(place: Place, wanted: str) -> _Kind:
    if place.kind in places.COLUMNAR:
        return _Kind(None, False, False)
    with opened(place) as stream:
        head = stream.read(encodings.SAMPLE_BYTES)
    encoding = encodings.find(head, place.name, wanted)
    is_lines = place.kind in (*places.LINES, ".json") and lines.is_lines(head, place.kind, encoding)
    is_packed = bool(place.compression or place.member)
    return _Kind(encoding, is_lines, is_lines and encoding.is_utf8 and not is_packed)


def rows_of(place: Place, kind: _Kind, reading: Reading) -> Iterator[Row | BadRow | bytes]:
    with opened(place) as stream:
        yield from _read(stream, place, kind, reading)
        if getattr(getattr(stream, "raw", None), "is_cut", False):
            reading.notes.append(f"{place.name} ends early: the packed file is damaged or cut short")


def _read(stream: IO[bytes], place: Place, kind: _Kind, reading: Reading) -> Iterator[Row | BadRow | bytes]:
    if kind.encoding is None:
        yield from columnar.read(stream, reading, place.kind)
        return
    if kind.is_lines:
        yield from lines.copied(stream, reading, kind.encoding)
        return
    newline = "" if place.kind in places.TABLES else None
    codec = "utf-8-sig" if kind.encoding.codec == "utf-8" else kind.encoding.codec
    try:
        with as_text(stream, codec, kind.encoding.errors, newline) as text:
            if place.kind in places.TABLES:
                yield from tables.read(text, reading, place.kind)
            elif place.kind in places.TEXTS:
                yield from texts.read(text, reading)
            else:
                yield from documents.read(text, reading)
    except UnicodeDecodeError:
        yield BadRow(f"it is not {kind.encoding.words} text, and the file cannot be read further")


def converted(
    name: str,
    key: Any,
    rows: Callable[[], Iterator[Row | BadRow | bytes]],
    reading: Reading,
    path: Path | None,
    encoding: str,
) -> FileRows:
    """The rows written once as JSON lines into the cache."""
    key = key if isinstance(key, str) else cache.key_of(key)
    kept = cache.find("rows", key) if path is None else None
    if kept is not None and (found := _loaded(kept, path)) is not None:
        return found
    meta: dict[str, Any] = {"encoding": encoding}

    def fill(folder: Path) -> None:
        import numpy as np

        spans, bad, sha256 = _write_lines(folder / "rows.jsonl", rows())
        np.save(folder / "spans.npy", spans)
        meta.update(bad=bad, sha256=_sha256(path, reading.check) if path else sha256, notes=reading.notes)

    return _kept(name, key, path, fill, meta, stamp_of(path) if path else None)


def _write_lines(target: Path, rows: Iterator[Row | BadRow | bytes]) -> tuple[Any, dict[int, str], str]:
    import numpy as np

    bad: dict[int, str] = {}
    ends, at, count, digest = [], 0, 0, hashlib.sha256()
    with target.open("wb") as out:
        for row in rows:
            line = to_line(row) if isinstance(row, dict) else row
            if isinstance(line, bytes) and len(line) <= 2 and not line.strip():
                continue
            if isinstance(line, BadRow):
                bad[count] = line.reason
                line = b""
            line = line.rstrip(b"\r\n") + b"\n"
            out.write(line)
            digest.update(line)
            at += len(line)
            ends.append(at)
            count += 1
    found = np.array(ends, np.int64)
    starts = np.concatenate([np.zeros(min(1, count), np.int64), found[:-1]])
    return np.stack([starts, found], axis=1), bad, digest.hexdigest()


def _kept(
    name: str,
    key: str,
    path: Path | None,
    fill: Callable[[Path], None],
    meta: dict[str, Any],
    stamp: tuple[int, int] | None,
) -> FileRows:
    def whole(folder: Path) -> None:
        fill(folder)
        is_settled = stamp is None or time.time() - stamp[1] / 1e9 > SETTLED_SECONDS
        described = {**meta, "name": name, "is_settled": is_settled}
        (folder / "meta.json").write_text(json.dumps(described), encoding="utf-8")

    entry = cache.keep("rows", key, whole)
    found = _loaded(entry, path, is_new=True)
    assert found is not None
    return found


def _loaded(entry: Path, path: Path | None, *, is_new: bool = False) -> FileRows | None:
    """A kept entry; None when it is damaged or was made while its file may still have been changing."""
    import numpy as np

    try:
        meta = object_from_json((entry / "meta.json").read_text(encoding="utf-8"))
        if not (meta["is_settled"] or is_new):
            return None
        spans = np.load(entry / "spans.npy", mmap_mode="r")
        own = entry / "rows.jsonl"
        lines_path = own if own.exists() or path is None else path
        bad = {int(place): str(reason) for place, reason in meta["bad"].items()}
        return FileRows(
            meta["name"], lines_path, spans, bad, meta["sha256"], meta["encoding"], tuple(meta["notes"]), stamp_of(lines_path)
        )  # fmt: skip
    except (OSError, ValueError, KeyError):
        return None


def stamp_of(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return found.st_size, found.st_mtime_ns


def _sha256(path: Path, check: Check) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(lines.BLOCK_BYTES):
            check()
            digest.update(block)
    return digest.hexdigest()
