"""What is kept with a run of its held-out predictions: `predictions.json` to read, `predictions.jsonl` with every row's
score, which nobody waits for. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_engine import parsing
from qlora_engine.errors import EngineError
from qlora_engine.evaluate.answers import adapter_sha256
from qlora_engine.evaluate.origin import origin_of_run
from qlora_engine.runs.record import RunFolder, write_aside

FILE, ROWS_FILE = "predictions.json", "predictions.jsonl"
SCHEMA_VERSION = 1


def write(run: RunFolder, document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> None:
    """Raises EngineError when the run's folder cannot be written; the old document then stands."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **document}, ensure_ascii=False, allow_nan=False)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    try:
        write_aside(run.path / ROWS_FILE, lines.encode("utf-8"))
        write_aside(run.path / FILE, text.encode("utf-8"))
    except OSError as error:
        raise EngineError(
            "run.not_writable",
            f"the predictions could not be written to {run.path}: {error.strerror or error}",
            "make room on the disk, then score the rows again",
            is_input_error=False,
        ) from error


def read(run: RunFolder) -> dict[str, Any] | None:
    """The kept predictions of the run's present adapter; None when there are none, or they are of another adapter."""
    try:
        stored = parsing.from_json((run.path / FILE).read_text(encoding="utf-8"))
        is_known = isinstance(stored, dict) and stored.pop("schema_version", None) == SCHEMA_VERSION
        if is_known and stored.get("adapter_sha256") == adapter_sha256(origin_of_run(run)):
            return stored
    except (OSError, ValueError, EngineError):
        return None
    return None
