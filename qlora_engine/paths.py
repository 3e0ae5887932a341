"""Where the program keeps its own data, and where its resources lie."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import platformdirs

HOME_VARIABLE = "QLORA_HOME"


def home() -> Path:
    """The folder of all the program's own data: `QLORA_HOME`, else the chosen one, else the platform's user data folder."""
    told = os.environ.get(HOME_VARIABLE)
    return Path(told).expanduser() if told else _home_at_start()


@cache
def _home_at_start() -> Path:
    """Read once: a choice made now moves nothing under a program that runs."""
    return next_home()


def next_home() -> Path:
    """Where a program keeps its data that is started from now on, without `QLORA_HOME`."""
    try:
        chosen = Path(home_file().read_text(encoding="utf-8").strip())
    except (OSError, UnicodeError):
        return usual_home()
    return chosen if chosen.is_absolute() else usual_home()


def usual_home() -> Path:
    """The platform's user data folder."""
    return Path(platformdirs.user_data_dir("qlora-studio", appauthor=False))


def home_file() -> Path:
    """Where the chosen home is noted: outside of any home, so that window and terminal find it."""
    return Path(platformdirs.user_config_dir("qlora-studio", appauthor=False)) / "home.txt"


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
