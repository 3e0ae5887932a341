"""Keeps an answer on disk that can be found again at any time: a cache that cannot be written is no error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def keep(file: Path, value: Any) -> None:
    """Write `value` as JSON aside and put it into its place; a reader never sees half of it."""
    aside = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(value), encoding="utf-8")
        aside.replace(file)
    except OSError:
        aside.unlink(missing_ok=True)
