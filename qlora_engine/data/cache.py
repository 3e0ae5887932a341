"""Keeps what was read and tokenized under QLORA_HOME: written aside, renamed, bounded in size, free to delete. Torch-free."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from qlora_engine import __version__, paths

LIMIT_BYTES = 30 << 30
MARK = "used"
"""An empty file in each entry; its time says when the entry was last used."""
FRESH_SECONDS = 3600.0
"""An entry used so recently may belong to a run that is under way."""


def folder() -> Path:
    return paths.cache_dir() / "data"


def key_of(parts: Any) -> str:
    """A name for whatever `parts` (JSON-ready) determine, together with the code that makes it."""
    text = json.dumps([parts, _code_version()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


@cache
def _code_version() -> str:
    """Of the sources of this package where they are on the disk, else of the program."""
    digest = hashlib.sha256(__version__.encode())
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        with contextlib.suppress(OSError):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def find(kind: str, key: str) -> Path | None:
    """The kept entry, marked as used now; None when there is none."""
    entry = folder() / kind / key
    if not (entry / MARK).is_file():
        return None
    with contextlib.suppress(OSError):
        os.utime(entry / MARK)
    return entry


def keep(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """Have `fill(folder)` write an entry and keep it under `key`; in a temporary folder when the home cannot be written."""
    parent = _writable(folder() / kind)
    aside = parent / f".{uuid.uuid4().hex}"
    aside.mkdir()
    try:
        fill(aside)
        (aside / MARK).touch()
        return _into_place(aside, parent / key)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _into_place(aside: Path, entry: Path) -> Path:
    if entry.exists():
        old = entry.with_name(f".{uuid.uuid4().hex}")
        with contextlib.suppress(OSError):
            entry.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        aside.rename(entry)
    except OSError:  # another process was faster, or a file of it is open on Windows
        return aside
    return entry


@cache
def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="qlora-data-"))


def _writable(parent: Path) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        parent = _temporary() / parent.name
        parent.mkdir(parents=True, exist_ok=True)
        return parent
    return parent if os.access(parent, os.W_OK) else _temporary()


def trim(limit_bytes: int = LIMIT_BYTES) -> int:
    """Delete what was used longest ago until the rest fits `limit_bytes`; the bytes freed."""
    now = time.time()
    entries = sorted(_entries(), key=lambda entry: entry[0])
    total, freed = sum(size for _, size, _ in entries), 0
    for used, size, path in entries:
        if total - freed <= limit_bytes or now - used < FRESH_SECONDS:
            break
        shutil.rmtree(path, ignore_errors=True)
        freed += size
    return freed


def _entries() -> list[tuple[float, int, Path]]:
    """(last used, bytes, folder) of every entry, half-written ones of dead processes among them."""
    found = []
    for path in folder().glob("*/*"):
        with contextlib.suppress(OSError):
            mark = path / MARK
            used = (mark if mark.exists() else path).stat().st_mtime
            found.append((used, sum(f.stat().st_size for f in path.iterdir()), path))
    return found
