"""Rows written by hand in the window's small table: kept as a file of JSON lines like any other dataset. Torch-free."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

from qlora_engine import parsing, paths
from qlora_engine.errors import EngineError

FIELDS = ("instruction", "input", "output")
NAME = re.compile(r"[\w][\w .-]{0,80}")
MOST_ROWS = 5000
"""A table with more is edited with another program."""


def folder() -> Path:
    return paths.home() / "datasets"


def read(path: Path) -> list[tuple[str, ...]]:
    """The rows of a file that `write` made.

    Raises:
        EngineError: it is another's: its rows hold more than these fields, or it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [parsing.object_from_json(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise EngineError(
            "data.own", f"{path} cannot be edited here: {error}", "edit it with another program"
        ) from error
    if len(rows) > MOST_ROWS or any(set(row) - set(FIELDS) for row in rows):
        raise EngineError(
            "data.own", f"{path} holds more than a table of questions and answers", "edit it elsewhere"
        )
    return [tuple(str(row.get(field, "")) for field in FIELDS) for row in rows]


def write(name: str, rows: Sequence[Sequence[str]], target: Path | None = None) -> Path:
    """Keep the rows that say anything under `name` (or in `target`), written aside and renamed; the file.

    Raises:
        EngineError: no name, no whole row, the name is taken, or it cannot be written.
    """
    kept = [dict(zip(FIELDS, row, strict=True)) for row in rows if any(cell.strip() for cell in row)]
    for place, row in enumerate(kept, 1):
        if not row["instruction"].strip() or not row["output"].strip():
            raise EngineError(
                "data.own", f"row {place} lacks its question or its answer", "fill both, or empty the row"
            )
    if not kept:
        raise EngineError("data.own", "there is no row to keep", "write a question and its answer")
    path = target or _path_of(name)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8", newline="\n") as out:
            out.writelines(
                json.dumps({k: v for k, v in row.items() if v}, ensure_ascii=False) + "\n" for row in kept
            )
            out.flush()
            os.fsync(out.fileno())
        aside.replace(path)
    except OSError as error:
        raise EngineError(
            "data.own", f"{path} cannot be written: {error.strerror}", "choose another name"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    return path


def _path_of(name: str) -> Path:
    if NAME.fullmatch(name.strip()) is None:
        raise EngineError(
            "data.own", f"{name!r} cannot be the name of a file", "use letters, digits, spaces and dashes"
        )
    path = folder() / f"{name.strip()}.jsonl"
    if path.exists():
        raise EngineError("data.own", f"there are rows called {name.strip()} already", "choose another name")
    return path
