"""Reads rows from files, folders, the starter or the hub. Torch-free."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine import parsing, paths
from qlora_engine.config import DataSettings
from qlora_engine.errors import EngineError

Row = dict[str, Any]
STARTER = "starter"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LIST_KEYS = ("data", "rows", "examples", "train", "instances")


@dataclass(frozen=True)
class RawRows:
    """Rows as they were stored, where they came from, and the sha256 of the bytes (or of the rows, for a hub set)."""

    rows: list[Row]
    origin: str
    sha256: str


def load_rows(settings: DataSettings, *, is_offline: bool = False) -> RawRows:
    """The rows of `settings.path`.

    Raises:
        EngineError: missing, empty, unreadable, with the line number where there is one.
    """
    path = settings.path
    if path == STARTER:
        found = _read_files([paths.resources_dir() / "starter" / "train.jsonl"], STARTER)
    elif is_local(path):
        found = read_path(Path(path).expanduser())
    else:
        found = _read_hub(path, settings.split, is_offline)
    rows = found.rows[: settings.max_rows]
    if not rows:
        raise EngineError("data.empty", f"the dataset {path} has no rows", "choose another dataset")
    return RawRows(rows, found.origin, found.sha256)


def is_local(path: str) -> bool:
    """True for a file or a folder, also a missing one; False for what only the hub can have, and for the starter."""
    is_here = (
        Path(path).expanduser().exists() or not HUB_ID.fullmatch(path) or path.startswith((".", "/", "~"))
    )
    return path != STARTER and is_here


def missing(settings: DataSettings) -> EngineError | None:
    """What reading would say of files that are not there, without reading anything."""
    for path in (settings.path, settings.held_out_path):
        if path and is_local(path) and not Path(path).expanduser().exists():
            return _missing(Path(path).expanduser())
    return None


def _missing(path: Path) -> EngineError:
    return EngineError(
        "data.missing", f"there is no file {path}", "check the path, or choose another dataset"
    )


def load_held_out(settings: DataSettings) -> RawRows | None:
    """The rows of the held-out file, or None when a share of the dataset is used."""
    if settings.held_out_path:
        return read_path(Path(settings.held_out_path).expanduser())
    if settings.path == STARTER:
        return _read_files([paths.resources_dir() / "starter" / "held_out.jsonl"], STARTER)
    return None


def read_path(path: Path) -> RawRows:
    """All rows of a file, or of every readable file of a folder in the order of their names.

    Raises:
        EngineError: missing, of an unknown kind, or broken.
    """
    if not path.exists():
        raise _missing(path)
    if path.is_file():
        return _read_files([path], str(path))
    files = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in READERS and p.is_file()]
    if not files:
        known = " ".join(READERS)
        raise EngineError(
            "data.empty", f"the folder {path} holds no file of a known kind ({known})", "choose a file"
        )
    return _read_files(files, str(path))


def _read_files(files: list[Path], origin: str) -> RawRows:
    digest = hashlib.sha256()
    rows: list[Row] = []
    for file in files:
        reader = READERS.get(file.suffix.lower())
        if reader is None:
            raise EngineError(
                "data.kind",
                f"files of kind {file.suffix or '(none)'} are not read: {file.name}",
                "known: " + " ".join(READERS),
            )
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise EngineError(
                "data.unreadable", f"{file} cannot be read: {error.strerror}", "check the file"
            ) from error
        digest.update(raw)
        rows.extend(reader(raw, file))
    return RawRows(rows, origin, digest.hexdigest())


def _text(raw: bytes, file: Path) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise EngineError(
            "data.encoding", f"{file.name}, line {line}: not UTF-8 text", "save the file as UTF-8"
        ) from error


def _read_jsonl(raw: bytes, file: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(raw, file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parsing.from_json(line)
        except ValueError as error:
            raise EngineError(
                "data.json", f"{file.name}, line {number}: broken JSON: {_short(error)}", "correct that line"
            ) from error
        yield _as_row(row, f"{file.name}, line {number}")


def _read_json(raw: bytes, file: Path) -> Iterator[Row]:
    text = _text(raw, file)
    try:
        value = parsing.from_json(text)
    except parsing.Malformed as error:
        if _is_jsonl(text):
            yield from _read_jsonl(raw, file)
            return
        raise EngineError(
            "data.json", f"{file.name}, line {error.line}: broken JSON: {error.reason}", "correct that line"
        ) from error
    for number, row in enumerate(_row_list(value, file), 1):
        yield _as_row(row, f"{file.name}, row {number}")


def _is_jsonl(text: str) -> bool:
    """JSON lines saved as .json: the first line is an object of its own."""
    first = text.lstrip().split("\n", 1)[0]
    try:
        return isinstance(parsing.from_json(first), dict)
    except ValueError:
        return False


def _row_list(value: Any, file: Path) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        for key in LIST_KEYS:
            if isinstance(value.get(key), list):
                return list(value[key])
        return [value]
    raise EngineError("data.json", f"{file.name} holds no list of rows", "write a list of objects")


def _as_row(row: Any, where: str) -> Row:
    if isinstance(row, dict):
        return row
    if isinstance(row, list) and all(isinstance(turn, dict) for turn in row):
        return {"messages": row}
    raise EngineError(
        "data.json", f"{where}: a row must be an object, not {type(row).__name__}", "correct that row"
    )


def _read_csv(raw: bytes, file: Path) -> Iterator[Row]:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(_text(raw, file).splitlines(keepends=True), delimiter=delimiter)
    try:
        for row in reader:
            if None in row:
                raise EngineError(
                    "data.csv",
                    f"{file.name}, line {reader.line_num}: more values than columns",
                    "correct that line",
                )
            yield {name: value or "" for name, value in row.items()}
    except csv.Error as error:
        raise EngineError(
            "data.csv", f"{file.name}, line {reader.line_num}: {error}", "correct that line"
        ) from error


def _read_parquet(raw: bytes, file: Path) -> Iterable[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows: list[Row] = parquet.read_table(pa.BufferReader(raw)).to_pylist()
    except pa.ArrowException as error:
        raise EngineError(
            "data.parquet", f"{file.name} is not a whole Parquet file: {_short(error)}", "get it again"
        ) from error
    return rows


def _read_text(raw: bytes, file: Path) -> Iterator[Row]:
    """One row per paragraph: blocks of text between empty lines."""
    for block in re.split(r"\n\s*\n", _text(raw, file)):
        if block.strip():
            yield {"text": block.strip("\n")}


def _read_hub(name: str, split: str, is_offline: bool) -> RawRows:
    import datasets

    try:
        with _without_hub() if is_offline else contextlib.nullcontext():
            rows = list(datasets.load_dataset(name, split=split))
    except Exception as error:  # the hub, pyarrow and the builder raise whatever they like
        if is_offline:
            raise EngineError(
                "data.offline", f"the dataset {name} ({split}) is not on this disk, and the program is set to stay offline",
                "choose a file, or allow downloads",
            ) from error  # fmt: skip
        raise EngineError(
            "data.hub", f"the dataset {name} ({split}) could not be read: {_short(error)}",
            "check the name, the split and the connection, or choose a file",
        ) from error  # fmt: skip
    return _hub_rows(rows, name)


@contextlib.contextmanager
def _without_hub() -> Iterator[None]:
    """What is in the cache only: both libraries read HF_HUB_OFFLINE when they are imported, so their copies are set."""
    import datasets.config
    import huggingface_hub.constants

    places: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _hub_rows(rows: list[Row], name: str) -> RawRows:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return RawRows(rows, name, digest.hexdigest())


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


READERS: dict[str, Callable[[bytes, Path], Iterable[Row]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
    ".md": _read_text,
}
