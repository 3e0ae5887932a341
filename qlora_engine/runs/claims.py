"""Taking a run for this process, and telling whether another has it. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_engine.errors import EngineError
from qlora_engine.runs import ownership
from qlora_engine.runs.stored import LIVE_STATES, LOCK_FILE

ACCEPT_OWNER = "owner"
"""What a person accepts who knows that the other computer is done."""


def take(path: Path, lock: ownership.Lock, record: Mapping[str, Any], *, even_elsewhere: bool) -> str:
    """Hold `lock`; what cannot be made sure of, in words.

    Raises:
        EngineError: another live process runs it, or may do so on another computer.
        OSError: the folder cannot be written.
    """
    doubt = f"it is on a network drive ({ownership.file_system(path)})" if ownership.is_network(path) else ""
    had_lock_file = (path / LOCK_FILE).exists()
    try:
        has_it = lock.take()
    except OSError as error:
        if error.errno not in ownership.NO_LOCKS:
            raise
        has_it, had_lock_file, doubt = True, False, "its file system has no locks"
    if not has_it or (not had_lock_file and _is_at_work(record)):
        lock.release()
        raise EngineError(
            "run.busy",
            f"run {path.name!r} is being trained by process {record.get('pid')}",
            "stop that one first",
        )
    if record.get("state") in LIVE_STATES and ownership.is_elsewhere(path, record) and not even_elsewhere:
        lock.release()
        raise EngineError(
            "run.elsewhere",
            f"run {path.name!r} was begun on {record.get('host')}, and from here it cannot be told whether it still runs",
            f"look there first; once it is over, add --accept {ACCEPT_OWNER}",
            accept=(ACCEPT_OWNER,),
        )
    return doubt


def is_owned(path: Path, record: Mapping[str, Any]) -> bool:
    """True while a process runs it, or may on another computer of a shared drive."""
    held = ownership.is_held(path / LOCK_FILE)
    if held is None:
        return ownership.is_alive(record) or ownership.is_elsewhere(path, record)
    return held or ownership.is_elsewhere(path, record)


def _is_at_work(record: Mapping[str, Any]) -> bool:
    """Without a lock file the record alone says who runs it; this very process may go on with what it began."""
    is_mine = record.get("pid") == os.getpid()
    return record.get("state") in LIVE_STATES and not is_mine and ownership.is_alive(record)
