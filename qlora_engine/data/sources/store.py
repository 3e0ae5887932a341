"""Rows by number, wherever they come from: a file is indexed where it lies or converted once, never held in memory.

Torch-free. Numbers run from 1 through all sources; a row that cannot be read has a number too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO

from qlora_engine import paths
from qlora_engine.config import DataSettings
from qlora_engine.data import oasst
from qlora_engine.data.sources import files, hub, places
from qlora_engine.data.sources.files import FileRows
from qlora_engine.data.sources.opening import unreadable
from qlora_engine.data.sources.places import Place
from qlora_engine.data.sources.reading import (
    MAX_ROW_BYTES,
    BadRow,
    Reading,
    Row,
    UnreadableRow,
    parse_line,
)
from qlora_engine.errors import EngineError

STARTER = "starter"
Check = Callable[[], None]


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
            if file.stamp != files.stamp_of(file.lines_path):
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
    dataset, note = hub.load(path, settings.split, is_offline=is_offline)
    reading = Reading(path, check)
    key = ["hub", path, settings.split, dataset._fingerprint, settings.max_rows]
    file_rows = files.converted(path, key, lambda: hub.read(dataset, reading), reading, None, "")
    notes = (note,) if note else ()
    return SourceRows(path, (_first_rows([file_rows], settings.max_rows)[0],), notes=notes)


def _without_trees(source: SourceRows, settings: DataSettings, check: Check) -> SourceRows:
    """Message trees as conversations; any other source as it is."""
    store = RowStore((source,), source.name)
    if not len(source) or not oasst.is_message_tree(store.sample(0, 50)):
        return source
    reading = Reading(source.name, check)
    rows = (row for block in store.blocks(1000) for _, row in block.rows() if not isinstance(row, BadRow))
    key = ["trees", store.sha256, len(source), settings.tree_paths]
    file = files.converted(
        source.name, key, lambda: oasst.conversations(rows, settings.tree_paths), reading, None, ""
    )
    return replace(source, files=(replace(file, sha256=store.sha256),))


def _of_path(path: Path, settings: DataSettings, check: Check) -> SourceRows:
    found, notes = places.find(path, settings.split)
    read, left = [], settings.max_rows
    for place in found:
        check()
        read.append(files.of_place(place, settings, check))
        if left is not None:
            left -= len(read[-1])
            if left <= 0:
                break
    return SourceRows(str(path), tuple(_first_rows(read, settings.max_rows)), notes=tuple(notes))


def head(place: Place, settings: DataSettings, check: Check = lambda: None) -> Iterator[Row | BadRow]:
    """The rows of a file from its beginning, read as they are asked for; nothing is kept.

    Raises:
        EngineError: it cannot be read.
    """
    reading = Reading(place.name, check)
    try:
        for row in files.rows_of(place, files.kind_of(place, settings.encoding), reading):
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
