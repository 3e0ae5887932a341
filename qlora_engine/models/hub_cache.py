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


def cached_snapshot(hub_id: str, revision: str | None) -> Path | None:
    """The folder of a cached model that has config, weights and tokenizer; None when one is missing."""
    root = hub_cache_dir() / f"models--{hub_id.replace('/', '--')}"
    reference = root / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else (revision or "")
    snapshot = root / "snapshots" / commit
    if not commit or not (snapshot / "config.json").is_file():
        return None
    if not any((snapshot / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        weight_files(snapshot)
    except EngineError:
        return None
    return snapshot
