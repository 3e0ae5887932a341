"""What a run does at this moment, for those who watch it from other processes: `live.json` in its folder. Torch-free.

History stands in `metrics.jsonl`; this file has only the phase and its progress, is replaced at most once a second and
neither sealed nor flushed: who finds half of it looks again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from qlora_engine import events, parsing
from qlora_engine.events import Event, PhaseChanged, Progressed, StepFinished
from qlora_engine.runs import sealed
from qlora_engine.runs.stored import METRICS_FILE

LIVE_FILE = "live.json"
SECONDS_BETWEEN = 1.0
TAIL_BYTES = 8192


class LiveFile:
    """Written by the owner. Failing to is nothing that a run should hear of."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / LIVE_FILE
        self._phase: PhaseChanged | None = None
        self._written = 0.0

    def note(self, event: Event) -> None:
        """Write down a new phase at once, progress once a second."""
        if isinstance(event, PhaseChanged):
            self._phase = event
            self._write(event)
        elif isinstance(event, Progressed) and time.monotonic() - self._written >= SECONDS_BETWEEN:
            self._write(self._phase, event)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write(self, *told: Event | None) -> None:
        self._written = time.monotonic()
        lines = [events.encode(event) for event in told if event is not None]
        aside = self._path.with_name(f".{LIVE_FILE}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            with open(aside, "w", encoding="utf-8", opener=_private) as file:
                file.write(json.dumps(lines))
            aside.replace(self._path)


def read(run_dir: Path) -> list[Event]:
    """The phase and its newest progress; empty when nobody trains it or the file is being replaced."""
    try:
        lines = parsing.from_json((run_dir / LIVE_FILE).read_bytes())
        return [events.decode(line) for line in lines]
    except (OSError, ValueError, TypeError):
        return []


def newest_step(run_dir: Path) -> StepFinished | None:
    """The newest step of a run; its record is written at checkpoints alone."""
    try:
        with (run_dir / METRICS_FILE).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").split("\n")
    except OSError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            event = events.decode(line)
            if isinstance(event, StepFinished):
                return event
    return None


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, sealed.PRIVATE_FILE)
