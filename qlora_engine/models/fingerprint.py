"""Hashes that say which base an adapter belongs to (CORRECTNESS 7). Torch-free."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from qlora_engine import parsing, paths
from qlora_engine.models.files import weight_files


def fingerprint(path: Path) -> dict[str, str]:
    """File name -> sha256 of everything that defines a model; remembered by size and time."""
    return {file.name: _remembered_sha256(file) for file in _defining_files(path)}


def known_fingerprint(path: Path) -> dict[str, str] | None:
    """The `fingerprint` if every file was hashed before and has not changed since, else None: reads no weights."""
    known = _known_hashes()
    hashes = {file.name: known.get(_key(file)) for file in _defining_files(path)}
    return None if None in hashes.values() else {name: str(digest) for name, digest in hashes.items()}


def base_sha256(path: Path) -> str:
    """One hash for the base: over the sorted names and hashes of its weight files."""
    lines = [f"{file.name} {_remembered_sha256(file)}" for file in weight_files(path)]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _defining_files(path: Path) -> list[Path]:
    others = (path / name for name in ("config.json", "tokenizer.json"))
    return [*weight_files(path), *(file for file in others if file.is_file())]


def _remembered_sha256(file: Path) -> str:
    """The file's hash; kept in the cache under its path, size and time, since hashing gigabytes takes long."""
    key, known = _key(file), _known_hashes()
    if key not in known:
        with file.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        _remember(known)
    return str(known[key])


def _key(file: Path) -> str:
    stat = file.stat()
    return f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


def _store() -> Path:
    return paths.cache_dir() / "hashes.json"


def _known_hashes() -> dict[str, str]:
    try:
        known = parsing.from_json(_store().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(known: dict[str, str]) -> None:
    from qlora_engine.runs.record import write_aside

    store = _store()
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_aside(store, json.dumps(known).encode())
    except OSError:
        return  # a cache that cannot be written only costs time
