"""Where the program keeps its own data, and where its resources lie."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The folder of all the program's own data: `QLORA_HOME`, else the platform's user data folder."""
    chosen = os.environ.get("QLORA_HOME")
    if chosen:
        return Path(chosen).expanduser()
    return Path(platformdirs.user_data_dir("qlora-studio", appauthor=False))


def runs_dir(chosen: str | None = None) -> Path:
    """Where runs are kept: `chosen` (a job file's `output.runs_dir`) or `home()/runs`."""
    return Path(chosen).expanduser() if chosen else home() / "runs"


def models_dir() -> Path:
    """Converted models (starter, GGUF), one folder each."""
    return home() / "models"


def cache_dir() -> Path:
    """What can be deleted at any time: rehearsals, hub facts."""
    return home() / "cache"


def resources_dir() -> Path:
    """Presets, starter dataset, known-model facts, GPU table, icons, help."""
    return Path(__file__).resolve().parent.parent / "resources"
