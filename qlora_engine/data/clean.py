"""Writes the rows that can be trained to a file of their own: bad rows, exact copies and those that a person left out are not in it. Torch-free."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlora_engine import row_numbers
from qlora_engine.data.pipeline import PreparedData
from qlora_engine.errors import EngineError


def write(prepared: PreparedData, target: str, check: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """JSON lines in UTF-8 with the keys that the rows had; written aside and renamed.

    Raises:
        EngineError: it cannot be written, or would replace the data itself.
    """
    path = Path(target).expanduser()
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        raise EngineError(
            "data.write", f"{path} is to hold JSON lines", f"name it {path.with_suffix('.jsonl')}"
        )
    if path.exists():
        raise EngineError("data.write", f"{path} exists already", "choose another name")
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        count = _write_rows(prepared, aside, check)
        aside.replace(path)
    except OSError as error:
        raise EngineError(
            "data.write", f"{path} cannot be written: {error.strerror}", "choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
    return {"path": str(path.resolve()), "rows": count, "left_out": len(prepared.store) - count}


def _write_rows(prepared: PreparedData, aside: Path, check: Callable[[], None]) -> int:
    wanted = _numbers(prepared)
    count = 0
    with aside.open("wb") as out:
        for block in prepared.store.blocks(1000):
            check()
            for number, text in block.texts():
                if number in wanted:
                    out.write(text.encode("utf-8") + b"\n")
                    count += 1
        out.flush()
        os.fsync(out.fileno())
    return count


def _numbers(prepared: PreparedData) -> set[int]:
    """Rows with something to train that nobody left out, the first of each that say the same."""
    import numpy as np

    tokens = prepared.whole.store
    numbers = tokens.column("number")
    kept = ~row_numbers.among(prepared.left_out, numbers)
    _, first = np.unique(tokens.hashes("key")[kept], return_index=True)
    return set(numbers[kept][first].tolist())
