"""The Hugging Face cache on this disk, read by its layout. Torch-free; does not import huggingface_hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from qlora_engine.errors import EngineError
from qlora_engine.models.files import weight_files

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")


def hub_cache_dir() -> Path:
    """As huggingface_hub finds it, without importing it."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    )
    return Path(home).expanduser() / "hub"


def is_offline(offline: bool) -> bool:
    """True when asked to stay offline, here or by `HF_HUB_OFFLINE`."""
    return offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def cached_models() -> Iterator[tuple[str, Path]]:
    """(hub id, snapshot folder) of every whole model in the cache."""
    for folder in sorted(hub_cache_dir().glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        snapshot = cached_snapshot(name, None)
        if snapshot is not None:
            yield name, snapshot


def cached_dataset(hub_id: str) -> Path | None:
    """The folder of a cached dataset, of its main branch or, where none is noted, the newest; what is in it is not looked
    at."""
    root = _root("datasets", hub_id)
    found = _snapshot(root, None)
    if found is None:
        others = [place for place in (root / "snapshots").glob("*") if place.is_dir()]
        found = max(others, key=lambda place: place.stat().st_mtime, default=None)
    return found


def cached_snapshot(hub_id: str, revision: str | None) -> Path | None:
    """The folder of a cached model that has config, weights and tokenizer; None when one is missing."""
    snapshot = _snapshot(_root("models", hub_id), revision)
    if snapshot is None or not (snapshot / "config.json").is_file():
        return None
    if not any((snapshot / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        weight_files(snapshot)
    except EngineError:
        return None
    return snapshot


def _root(kind: str, hub_id: str) -> Path:
    return hub_cache_dir() / f"{kind}--{hub_id.replace('/', '--')}"


def _snapshot(root: Path, revision: str | None) -> Path | None:
    """`revision` is a branch, a tag or a whole commit; None is the main branch."""
    reference = root / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else (revision or "")
    snapshot = root / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None
