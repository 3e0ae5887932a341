"""Hashes that say which base an adapter belongs to (CORRECTNESS 7). Torch-free."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from qlora_engine import paths
from qlora_engine.models.files import weight_files


def fingerprint(path: Path) -> dict[str, str]:
    """File name -> sha256 of everything that defines a model; remembered by size and time."""
    files = [
        *weight_files(path),
        *(path / n for n in ("config.json", "tokenizer.json") if (path / n).is_file()),
    ]
    return {file.name: _remembered_sha256(file) for file in files}


def base_sha256(path: Path) -> str:
    """One hash for the base: over the sorted names and hashes of its weight files."""
    lines = [f"{file.name} {_remembered_sha256(file)}" for file in weight_files(path)]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _remembered_sha256(file: Path) -> str:
    """The file's hash; kept in the cache under its path, size and time, since hashing gigabytes takes long."""
    stat = file.stat()
    key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    store = paths.cache_dir() / "hashes.json"
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if key not in known:
        with file.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        _remember(store, known)
    return str(known[key])


def _remember(store: Path, known: dict[str, str]) -> None:
    from qlora_engine.runs.record import write_aside

    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_aside(store, json.dumps(known).encode())
    except OSError:
        return  # a cache that cannot be written only costs time
