"""Chooses where programs that are started from now on keep their data. What is kept already stays where it lies."""

from __future__ import annotations

from pathlib import Path

from qlora_engine import paths
from qlora_engine.errors import EngineError
from qlora_engine.runs.sealed import write_aside


def choose(folder: Path | None) -> None:
    """Note `folder`, an absolute one; None: the usual one again.

    Raises:
        EngineError: the folder cannot be written to, or the choice cannot be kept.
    """
    note = paths.home_file()
    try:
        if folder is None:
            note.unlink(missing_ok=True)
            return
        _try_to_write(folder)
        note.parent.mkdir(parents=True, exist_ok=True)
        write_aside(note, str(folder).encode("utf-8"))
    except OSError as error:
        raise EngineError("home.write", f"the home folder stays {paths.next_home()}: {error}", "choose a folder you can write to") from error  # fmt: skip


def _try_to_write(folder: Path) -> None:
    """By writing: rights on shares and removable disks are not told by the folder's mode."""
    probe = folder / ".qlora-studio-can-write"
    write_aside(probe, b"")
    probe.unlink()
