"""What a run left on the disk: its parts with their sizes, and the end of its log. Reads the folder; without Qt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.presenters.words import bytes_text, plural
from qlora_engine.runs import stored

LOG_LINES = 400
TITLES = {
    "adapter": "Adapter, the result", "checkpoints": "Checkpoints to go on from", "metrics.jsonl": "What was measured",
    "memory.jsonl": "Memory over time", "tensorboard": "Curves for TensorBoard", "job.toml": "Settings", "run.json": "Record",
    "log.txt": "Log", "predictions.json": "Held-out scores", "predictions.jsonl": "Held-out rows, scored", "answers.jsonl": "Answers",
    "notes.json": "Name, note and tags", "metrics.earlier.jsonl": "Measured before it began anew", "live.json": "What it does now",
    "commands.jsonl": "What was asked of it", "run.lock": "Who owns it",
}  # fmt: skip


@dataclass(frozen=True)
class RunFiles:
    """`rows`: (what, size and name)."""

    rows: tuple[tuple[str, str], ...]
    log: str
    total_bytes: int


def files_of(path: Path) -> RunFiles:
    """For a pool thread: a run may hold hundreds of files."""
    rows, total = [], 0
    for found in sorted(
        path.iterdir(), key=lambda p: (list(TITLES).index(p.name) if p.name in TITLES else 99, p.name)
    ):
        size = _size(found)
        total += size
        count = f", {plural(sum(1 for _ in found.iterdir()), 'entry', 'entries')}" if found.is_dir() else ""
        rows.append((TITLES.get(found.name, found.name), f"{bytes_text(size)} \u00b7 {found.name}{count}"))
    return RunFiles((*rows, ("Together", bytes_text(total))), stored.log_tail(path, LOG_LINES), total)


def _size(path: Path) -> int:
    if path.is_symlink() or not path.exists():
        return 0
    if path.is_dir():
        return sum(_size(found) for found in path.iterdir())
    return path.stat().st_size
