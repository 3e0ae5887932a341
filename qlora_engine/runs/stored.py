"""What lies in a run folder, whole or not, and what can be made again from it. Torch-free."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from qlora_engine import parsing
from qlora_engine.errors import EngineError
from qlora_engine.runs import sealed

RUN_SCHEMA_VERSION = 1
LIVE_STATES = ("running", "paused")
PLANNED = "planned"
"""A run without steps: its job can be edited until it is started."""
RECORD_FILE, JOB_FILE, LOCK_FILE = "run.json", "job.toml", "run.lock"
CHECKPOINT_MARK, STATE_FILE = "checkpoint.json", "state.json"
ADAPTER_MARK = "adapter.json"
METRICS_FILE, MEMORY_FILE = "metrics.jsonl", "memory.jsonl"
LOG_FILE = "log.txt"
STEP_FOLDER = re.compile(r"step-(0|[1-9][0-9]{0,11})")


def record(run: Path) -> dict[str, Any]:
    """`run.json` as it was written.

    Raises:
        OSError: it cannot be read. Malformed: it is damaged. EngineError: a newer program wrote it.
    """
    raw = (run / RECORD_FILE).read_bytes()
    version = parsing.object_from_json(raw).get("schema_version")
    if isinstance(version, int) and version > RUN_SCHEMA_VERSION:
        raise EngineError(
            "run.newer",
            f"run {run.name!r} has record version {version}; this program knows {RUN_SCHEMA_VERSION}",
            "update QLoRA Studio",
        )
    return sealed.unsealed(raw)


def rebuilt_record(run: Path) -> dict[str, Any] | None:
    """What the newest checkpoint and the adapter keep of the record, with `rebuilt_from`; None without any."""
    for checkpoint in reversed(checkpoints(run)):
        with contextlib.suppress(OSError, ValueError):
            kept = sealed.read(checkpoint / RECORD_FILE)
            return {**kept, "state": "crashed", **end_of_adapter(run), "rebuilt_from": checkpoint.name}
    return None


def end_of_adapter(run: Path) -> dict[str, Any]:
    """The closing record that a finished run leaves with its adapter; empty while it has none."""
    if not sealed.has_files(run / "adapter", run / ADAPTER_MARK):
        return {}
    with contextlib.suppress(OSError, ValueError, KeyError):
        return {"state": "finished", **sealed.read(run / ADAPTER_MARK)["record"]}
    return {}


def adapter_problem(run: Path) -> str:
    """Why the finished adapter cannot be used; empty when every byte of it is as it was written."""
    if not (run / "adapter").is_dir():
        return "it is missing"
    changed = sealed.changed_files(run / "adapter", run / ADAPTER_MARK)
    return f"not as written: {', '.join(changed)}" if changed else ""


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first. One that lost a file or a byte is not complete."""
    return [folder for folder in step_folders(run) if is_complete(folder)]


def step_folders(run: Path) -> list[Path]:
    """Everything named like a checkpoint, whole or not, oldest first."""
    place = run / "checkpoints"
    return sorted((f for f in place.iterdir() if step_of(f) >= 0), key=step_of) if place.is_dir() else []


def step_of(checkpoint: Path) -> int:
    """The N of `step-N`; -1 for another name."""
    match = STEP_FOLDER.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def is_complete(checkpoint: Path) -> bool:
    """True when the loop's position can be read and is this one's, and every other file has the size written in the mark."""
    try:
        position = sealed.read(checkpoint / STATE_FILE)["train_state"]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return position == step_of(checkpoint) and sealed.has_files(checkpoint, checkpoint / CHECKPOINT_MARK)


def is_intact(checkpoint: Path) -> bool:
    """True when every byte is as it was written."""
    return is_complete(checkpoint) and not sealed.changed_files(checkpoint, checkpoint / CHECKPOINT_MARK)


def require_adapter(run: Path) -> None:
    """Refuse a finished adapter that is not as it was written.

    Raises:
        EngineError: which files, and that the run can make it again.
    """
    problem = adapter_problem(run)
    if problem:
        raise EngineError(
            "adapter.damaged",
            f"the adapter of run {run.name!r} is damaged: {problem}",
            f"make it again from its checkpoint: `qlora resume {run.name}`",
        )


def damaged_lines(metrics: Path) -> int:
    """Lines that are not as they were written, and are left out."""
    if not metrics.exists():
        return 0
    with metrics.open(encoding="utf-8", errors="replace") as file:
        return sum(bool(line.strip()) and not sealed.is_sealed_line(line) for line in file)


def log_tail(run_dir: Path, lines: int = 40) -> str:
    """The end of what a run's engine printed."""
    try:
        text = (run_dir / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
