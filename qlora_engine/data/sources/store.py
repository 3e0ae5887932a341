"""Rows by number, wherever they come from: a file is indexed where it lies or converted once, never held in memory.

Torch-free. Numbers run from 1 through all sources; a row that cannot be read has a number too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from qlora_engine import paths
from qlora_engine.config import DataSettings
from qlora_engine.data import cache, oasst
from qlora_engine.data.sources import columnar, documents, encodings, hub, lines, places, tables, texts
from qlora_engine.data.sources.opening import as_text, opened, unreadable
from qlora_engine.data.sources.places import Place
from qlora_engine.data.sources.reading import (
    MAX_ROW_BYTES,
    BadRow,
    Reading,
    Row,
    UnreadableRow,
    parse_line,
    to_line,
)
from qlora_engine.errors import EngineError
from qlora_engine.parsing import object_from_json

STARTER = "starter"
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


@dataclass(frozen=True, eq=False)
class SourceRows:
    """One source: its files, and how many times its rows are seen in an epoch."""

    name: str
    files: tuple[FileRows, ...]
    weight: float = 1.0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(len(file) for file in self.files)


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of one file, small enough to send to another process."""

    source: int
    path: str
    first_number: int
    spans: list[list[int]]
    bad: Mapping[int, str]

    def rows(self) -> Iterator[tuple[int, Row | BadRow]]:
        """(number, row), read now.

        Raises:
            EngineError: the file has gone or has changed.
        """
        with _open_lines(Path(self.path)) as stream:
            for place, (start, end) in enumerate(self.spans):
                number = self.first_number + place
                try:
                    yield number, _row_at(stream, start, end, self.bad.get(place))
                except UnreadableRow as problem:
                    yield number, BadRow(str(problem))

    def texts(self) -> Iterator[tuple[int, str]]:
        """(number, stored text) of every row that could be read as text.

        Raises:
            EngineError: the file has gone.
        """
        with _open_lines(Path(self.path)) as stream:
            for place, (start, end) in enumerate(self.spans):
                if place not in self.bad and end - start <= MAX_ROW_BYTES:
                    if stream.tell() != start:
                        stream.seek(start)
                    yield (
                        self.first_number + place,
                        stream.read(end - start).decode("utf-8", "replace").strip(),
                    )


@dataclass(frozen=True, eq=False)
class RowStore:
    """All rows of a dataset."""

    sources: tuple[SourceRows, ...]
    origin: str
    _firsts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        number = 1
        for _, file in self._files():
            self._firsts.append(number)
            number += len(file)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    @property
    def sha256(self) -> str:
        """Of the file's bytes; of several files, of their hashes."""
        hashes = [file.sha256 for _, file in self._files()]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        found = [note for source in self.sources for note in source.notes]
        for _, file in self._files():
            found.extend(file.notes)
            if file.encoding not in ("", "UTF-8"):
                found.append(f"{file.name}: read as {file.encoding}")
        return tuple(found)

    def row(self, number: int) -> Row:
        """Row `number`, from 1.

        Raises:
            UnreadableRow: it cannot be read, with the reason.
            IndexError: there is no such row.
        """
        _, file, place = self._find(number)
        with _open_lines(file.lines_path) as stream:
            return _row_at(stream, int(file.spans[place, 0]), int(file.spans[place, 1]), file.bad.get(place))

    def raw(self, number: int) -> str:
        """The stored text of a row, also of a broken one."""
        _, file, place = self._find(number)
        start, end = file.spans[place].tolist()
        with _open_lines(file.lines_path) as stream:
            stream.seek(start)
            return stream.read(min(end - start, MAX_ROW_BYTES)).decode("utf-8", "backslashreplace").strip()

    def place(self, number: int) -> tuple[str, int]:
        """(file name, row number in that file)."""
        _, file, place = self._find(number)
        return file.name, place + 1

    def source_of(self, number: int) -> int:
        return self._find(number)[0]

    def sample(self, source: int, count: int) -> list[Row]:
        """The first readable rows of a source."""
        first = 1 + sum(len(s) for s in self.sources[:source])
        found: list[Row] = []
        for number in range(first, first + len(self.sources[source])):
            with contextlib.suppress(UnreadableRow):
                found.append(self.row(number))
            if len(found) >= count:
                break
        return found

    def blocks(self, rows: int, max_bytes: int = 4 << 20) -> Iterator[Block]:
        """Every row once, in order, in blocks of at most `rows` rows and about `max_bytes`."""
        for (source, file), first in zip(self._files(), self._firsts, strict=True):
            start = 0
            while start < len(file):
                end = min(start + rows, len(file))
                limit = int(file.spans[start, 0]) + max_bytes
                while end > start + 1 and int(file.spans[end - 1, 1]) > limit:
                    end = start + max(1, (end - start) // 2)
                bad = {p - start: file.bad[p] for p in range(start, end) if p in file.bad} if file.bad else {}
                spans = file.spans[start:end].tolist()
                yield Block(source, str(file.lines_path), first + start, spans, bad)
                start = end

    def require_unchanged(self) -> None:
        """Raises:
        EngineError: a file has changed since its rows were found.
        """
        for _, file in self._files():
            if file.stamp != _stamp(file.lines_path):
                raise EngineError(
                    "data.changed", f"{file.name} changed while it was read", "try again when it is whole"
                )

    def _files(self) -> Iterator[tuple[int, FileRows]]:
        for index, source in enumerate(self.sources):
            for file in source.files:
                yield index, file

    def _find(self, number: int) -> tuple[int, FileRows, int]:
        if not 1 <= number <= len(self):
            raise IndexError(number)
        at = bisect_right(self._firsts, number) - 1
        source, file = next(islice(self._files(), at, None))
        return source, file, number - self._firsts[at]


def open_store(settings: DataSettings, *, is_offline: bool = False, check: Check = lambda: None) -> RowStore:
    """The rows of `settings.path` and `settings.more`.

    Raises:
        EngineError: missing, empty, of an unknown kind, or wholly unreadable.
    """
    wanted = {settings.path: 1.0, **settings.more}
    sources = []
    for path, weight in wanted.items():
        found = _without_trees(_source(path, settings, is_offline, check), settings, check)
        if not len(found):
            raise EngineError("data.empty", f"the dataset {path} has no rows", "choose another dataset")
        sources.append(replace(found, weight=float(weight)))
    return RowStore(tuple(sources), " + ".join(source.name for source in sources))


def open_held_out(settings: DataSettings, *, check: Check = lambda: None) -> RowStore | None:
    """The rows of the held-out file, or None when a share of the dataset is used."""
    if settings.held_out_path:
        path = str(Path(settings.held_out_path).expanduser())
    elif settings.path == STARTER:
        path = str(paths.resources_dir() / "starter" / "held_out.jsonl")
    else:
        return None
    found = _of_path(Path(path), replace(settings, split="train", max_rows=None), check)
    found = _without_trees(found, settings, check)
    return RowStore((found,), found.name)


def is_local(path: str) -> bool:
    """True for a file or a folder, also a missing one; False for what only the hub can have, and for the starter."""
    is_here = Path(path).expanduser().exists() or not hub.is_hub_id(path) or path.startswith((".", "/", "~"))
    return path != STARTER and is_here


def missing(settings: DataSettings) -> EngineError | None:
    """What reading would say of files that are not there, without reading anything."""
    for path in (settings.path, *settings.more, settings.held_out_path):
        if path and is_local(path) and not Path(path).expanduser().exists():
            return places.missing(Path(path).expanduser())
    return None


def _source(path: str, settings: DataSettings, is_offline: bool, check: Check) -> SourceRows:
    if path == STARTER:
        file = paths.resources_dir() / "starter" / "train.jsonl"
        return replace(_of_path(file, settings, check), name=STARTER)
    if is_local(path):
        return _of_path(Path(path).expanduser(), settings, check)
    dataset = hub.load(path, settings.split, is_offline=is_offline)
    reading = Reading(path, check)
    key = ["hub", path, settings.split, dataset._fingerprint, settings.max_rows]
    file_rows = _converted(path, key, lambda: hub.read(dataset, reading), reading, None, "")
    return SourceRows(path, (_first_rows([file_rows], settings.max_rows)[0],))


def _without_trees(source: SourceRows, settings: DataSettings, check: Check) -> SourceRows:
    """Message trees as conversations; any other source as it is."""
    store = RowStore((source,), source.name)
    if not len(source) or not oasst.is_message_tree(store.sample(0, 50)):
        return source
    reading = Reading(source.name, check)
    rows = (row for block in store.blocks(1000) for _, row in block.rows() if not isinstance(row, BadRow))
    key = ["trees", store.sha256, len(source), settings.tree_paths]
    file = _converted(
        source.name, key, lambda: oasst.conversations(rows, settings.tree_paths), reading, None, ""
    )
    return replace(source, files=(replace(file, sha256=store.sha256),))


def _of_path(path: Path, settings: DataSettings, check: Check) -> SourceRows:
    found, notes = places.find(path, settings.split)
    files, left = [], settings.max_rows
    for place in found:
        check()
        files.append(_of_place(place, settings, check))
        if left is not None:
            left -= len(files[-1])
            if left <= 0:
                break
    return SourceRows(str(path), tuple(_first_rows(files, settings.max_rows)), notes=tuple(notes))


def head(place: Place, settings: DataSettings, check: Check = lambda: None) -> Iterator[Row | BadRow]:
    """The rows of a file from its beginning, read as they are asked for; nothing is kept.

    Raises:
        EngineError: it cannot be read.
    """
    reading = Reading(place.name, check)
    try:
        for row in _rows_of(place, _kind(place, settings.encoding), reading):
            if not isinstance(row, bytes):
                yield row
            elif row.strip():
                try:
                    yield parse_line(row)
                except UnreadableRow as problem:
                    yield BadRow(str(problem))
    except OSError as error:
        raise unreadable(place.path, error) from error


def _first_rows(files: Sequence[FileRows], count: int | None) -> list[FileRows]:
    if count is None:
        return list(files)
    kept = []
    for file in files:
        kept.append(replace(file, spans=file.spans[:count]))
        count -= len(kept[-1])
    return [file for file in kept if len(file)]


def _of_place(place: Place, settings: DataSettings, check: Check) -> FileRows:
    import numpy as np

    reading = Reading(place.name, check)
    try:
        stamp = _stamp(place.path)
        key = cache.key_of(["file", str(place.path.resolve()), place.member, stamp, settings.encoding])
        kept = cache.find("rows", key)
        if kept is not None and (found := _loaded(kept, place.path)) is not None:
            return found
        kind = _kind(place, settings.encoding)
        if kind.is_in_place:
            spans, sha256 = lines.index(place.path, check)
            meta = {"sha256": sha256, "encoding": kind.encoding_words, "notes": [], "bad": {}}
            return _kept(
                place.name, key, place.path, lambda folder: np.save(folder / "spans.npy", spans), meta, stamp
            )
        return _converted(
            place.name, key, lambda: _rows_of(place, kind, reading), reading, place.path, kind.encoding_words
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


def _kind(place: Place, wanted: str) -> _Kind:
    if place.kind in places.COLUMNAR:
        return _Kind(None, False, False)
    with opened(place) as stream:
        head = stream.read(encodings.SAMPLE_BYTES)
    encoding = encodings.find(head, place.name, wanted)
    is_lines = place.kind in (*places.LINES, ".json") and lines.is_lines(head, place.kind, encoding)
    is_packed = bool(place.compression or place.member)
    return _Kind(encoding, is_lines, is_lines and encoding.is_utf8 and not is_packed)


def _rows_of(place: Place, kind: _Kind, reading: Reading) -> Iterator[Row | BadRow | bytes]:
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


def _converted(
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

    return _kept(name, key, path, fill, meta, _stamp(path) if path else None)


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
            meta["name"], lines_path, spans, bad, meta["sha256"], meta["encoding"], tuple(meta["notes"]), _stamp(lines_path)
        )  # fmt: skip
    except (OSError, ValueError, KeyError):
        return None


def _stamp(path: Path) -> tuple[int, int]:
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


@contextlib.contextmanager
def _open_lines(path: Path) -> Iterator[IO[bytes]]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error
    with stream:
        yield stream


def _row_at(stream: IO[bytes], start: int, end: int, bad: str | None) -> Row:
    if bad is not None:
        raise UnreadableRow(bad)
    if end - start > MAX_ROW_BYTES:
        raise UnreadableRow(f"it is larger than {MAX_ROW_BYTES >> 20} MiB")
    if stream.tell() != start:
        stream.seek(start, os.SEEK_SET)
    return parse_line(stream.read(end - start))
