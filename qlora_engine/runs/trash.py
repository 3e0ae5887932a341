"""Throwing a run away: into the platform's trash, or for good where there is none. Torch-free."""

from __future__ import annotations

import shutil
from pathlib import Path

from qlora_engine.errors import EngineError
from qlora_engine.runs.record import LIVE_STATES, RunFolder


def size_of(run_dir: Path) -> int:
    """Bytes of all files in it; links are not followed."""
    return sum(p.lstat().st_size for p in run_dir.rglob("*") if p.is_file() and not p.is_symlink())


def throw_away(folder: RunFolder, *, for_good: bool = False) -> int:
    """Move the run to the trash, or remove it `for_good`; the bytes it took.

    Raises:
        EngineError: it is being trained, cannot be removed, or there is no trash to move it to.
    """
    _require_idle(folder)
    freed = size_of(folder.path)
    if for_good:
        _remove(folder.path)
    else:
        _to_trash(folder.path)
    return freed


def _require_idle(folder: RunFolder) -> None:
    try:
        is_live = folder.state() in LIVE_STATES
    except EngineError:  # its record cannot be read: then nobody trains it
        is_live = False
    if is_live:
        raise EngineError("run.busy", f"run {folder.run_id!r} is being trained", "stop it first")


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise EngineError(
            "run.not_removed",
            f"run {path.name!r} could not be removed: {error.strerror or error}",
            f"make {path} writable, or remove it by hand",
        ) from error


def _to_trash(path: Path) -> None:
    from send2trash import send2trash

    try:
        send2trash(str(path))
    except OSError as error:  # TrashPermissionError is one; a drive without a trash answers so too
        raise EngineError(
            "run.no_trash",
            f"run {path.name!r} could not be moved to the trash: {error.strerror or error}",
            "delete it for good instead (`qlora runs delete RUN --for-good`)",
        ) from error
