"""The first look at a dataset, within two seconds whatever its size: format, columns, keys and first rows. Torch-free."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from qlora_engine import paths
from qlora_engine.config import DataSettings
from qlora_engine.data import oasst
from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.formats import FIELDS, OPTIONAL_FIELDS, detect, nested, read_row
from qlora_engine.data.sources import STARTER, BadRow, Row, RowStore, places, store
from qlora_engine.errors import EngineError

ROWS = 50
SHOWN = 20
RAW_CHARS = 2_000


def preview(settings: DataSettings, rows: int = ROWS) -> dict[str, Any]:
    """What the first rows of a local dataset are; only its beginning is read. JSON-ready.

    `format` is None where none was found, and `problem` says why; `fields` lists each format's fields with the usual
    column names, so that a person can map them; `rows` show raw and read rows side by side.

    Raises:
        EngineError: missing, unreadable, of an unknown kind, or on the hub.
    """
    began = time.perf_counter()
    path = _local(settings.path)
    found, notes = places.find(path, settings.split)
    first = list(islice(store.head(found[0], settings), rows))
    nbytes = sum(place.path.stat().st_size for place in {p.path: p for p in found}.values())
    answer = _answer(settings, first, [place.name for place in found], nbytes, notes)
    return {**answer, "seconds": round(time.perf_counter() - began, 3)}


def preview_of_rows(store: RowStore, settings: DataSettings, rows: int = ROWS) -> dict[str, Any]:
    """The same of a dataset that has been read, wherever it came from: of the hub there is no other way."""
    began = time.perf_counter()
    source = store.sources[0]
    nbytes = sum(int(file.spans[-1, 1]) for file in source.files if len(file))
    names = [file.name for file in source.files]
    answer = _answer(settings, list(store.sample(0, rows)), names, nbytes, list(store.notes))
    return {**answer, "seconds": round(time.perf_counter() - began, 3)}


def _answer(
    settings: DataSettings, first: list[Row | BadRow], names: list[str], nbytes: int, notes: list[str]
) -> dict[str, Any]:
    good = [row for row in first if isinstance(row, dict)]
    return {
        "origin": settings.path, "files": names[:SHOWN], "file_count": len(names), "bytes": nbytes,
        "notes": notes, "columns": list(dict.fromkeys(str(key) for row in good for key in row)),
        "nested": nested.names_in(good), "fields": {name: {f: list(usual) for f, usual in fields.items()} for name, fields in FIELDS.items()},
        "optional_fields": sorted(OPTIONAL_FIELDS), "is_tree": oasst.is_message_tree(good),
        **_meaning(first, good, settings),
    }  # fmt: skip


def _local(path: str) -> Path:
    if path == STARTER:
        return paths.resources_dir() / "starter" / "train.jsonl"
    if not store.is_local(path):
        raise EngineError(
            "data.hub", f"{path} is on the hub, so its rows are not here yet", "check the data to fetch them"
        )
    return Path(path).expanduser()


def _meaning(first: list[Row | BadRow], good: list[Row], settings: DataSettings) -> dict[str, Any]:
    rows = list(oasst.conversations(good, settings.tree_paths)) if oasst.is_message_tree(good) else good
    try:
        detection = detect(rows, settings)
    except EngineError as error:
        shown = [_shown(number, row, None) for number, row in enumerate(first[:SHOWN], 1)]
        return {
            "format": None,
            "problem": error.message,
            "hint": error.hint,
            "detection": None,
            "rows": shown,
        }
    shown = [
        _shown(number, row, None if oasst.is_message_tree(good) else detection)
        for number, row in enumerate(first[:SHOWN], 1)
    ]
    return {
        "format": detection.format,
        "problem": None,
        "hint": "",
        "detection": asdict(detection),
        "rows": shown,
    }


def _text(value: Any) -> str:
    """As it would stand in a file: objects and lists as JSON."""
    if isinstance(value, dict | list):
        try:
            return json.dumps(value, ensure_ascii=False, default=str)
        except (ValueError, RecursionError):
            pass  # nested too deep
    return str(value)


def _shown(number: int, row: Row | BadRow, detection: Any) -> Mapping[str, Any]:
    if isinstance(row, BadRow):
        return {"row": number, "raw": None, "read": None, "problem": row.reason}
    raw = {str(key): _text(value)[:RAW_CHARS] for key, value in row.items()}
    if detection is None:
        return {"row": number, "raw": raw, "read": None, "problem": None}
    try:
        return {
            "row": number,
            "raw": raw,
            "read": read_row(row, number, detection).to_json(),
            "problem": None,
        }
    except RowProblem as problem:
        return {"row": number, "raw": raw, "read": None, "problem": problem.reason}
