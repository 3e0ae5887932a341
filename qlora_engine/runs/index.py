"""All runs at once: a cache of what their folders tell, made again for every run that changed. Torch-free.

The folders are the truth. The cache is a SQLite file that may be deleted at any time; lost or damaged it is rebuilt, and
where it cannot be written the list is only slower.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_engine import parsing, paths
from qlora_engine.runs import live, notes, queue, stored
from qlora_engine.runs.notes import Notes
from qlora_engine.runs.record import LIVE_STATES, RunFolder, is_run
from qlora_engine.runs.summary import RunSummary, summary_of

UNSETTLED = (*LIVE_STATES, "new")
"""States of a record that say nothing before its owner is looked for."""
SIGNED = (stored.RECORD_FILE, stored.JOB_FILE, notes.NOTES_FILE, "checkpoints", stored.ADAPTER_MARK)


@dataclass(frozen=True)
class RunEntry:
    """One run in the list. `queue_place`: 1 for the next of the queue, 0 for one at work, None outside it; `run_id` is its folder's name."""

    summary: RunSummary
    notes: Notes = field(default_factory=Notes)
    queue_place: int | None = None

    @property
    def run_id(self) -> str:
        return self.summary.run_id

    @property
    def path(self) -> Path:
        return self.summary.path

    @property
    def title(self) -> str:
        """The name a person gave it, else its folder's."""
        return self.notes.name or self.summary.run_id

    @property
    def state(self) -> str:
        """planned, queued, running, paused, stopped, failed, crashed, finished or unreadable."""
        waits = self.queue_place is not None and self.summary.state not in (*LIVE_STATES, "finished")
        return "queued" if waits else self.summary.state

    @property
    def is_live(self) -> bool:
        return self.summary.state in LIVE_STATES

    @property
    def progress(self) -> float | None:
        """From 0 to 1; None while the number of steps is unknown."""
        done, total = self.summary.last_step, self.summary.total_steps
        return None if not total else min(1.0, (done or 0) / total)

    @property
    def best_loss(self) -> float | None:
        """The lowest held-out loss after a step."""
        return self.summary.best_loss if self.summary.best_loss is not None else self.summary.loss_after


class RunIndex:
    """The list of runs. `entries()` may be called as often as wanted, from one thread at a time."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file or paths.cache_dir() / "runs.sqlite"

    def entries(self, folders: Iterable[Path] = ()) -> tuple[RunEntry, ...]:
        """Every run of the home's runs folder and of `folders`, newest first. Never raises for what a run holds."""
        places = dict.fromkeys([paths.runs_dir(), *folders])
        found = [run for place in places for run in _run_dirs(place)]
        known = self._load()
        fresh: dict[str, tuple[str, RunEntry]] = {}
        entries = [self._entry(run, known, fresh) for run in dict.fromkeys(found)]
        gone = set(known) - set(found) if found or known else set()
        self._store(fresh, {path for path in gone if _is_below(path, places)})
        waiting = queue.places()
        placed = [_placed(entry, waiting) for entry in entries if entry is not None]
        return tuple(sorted(placed, key=lambda e: e.summary.created_unix or 0.0, reverse=True))

    def _entry(
        self, run: str, known: dict[str, tuple[str, RunEntry]], fresh: dict[str, tuple[str, RunEntry]]
    ) -> RunEntry | None:
        signature = _signature(run)
        old = known.get(run)
        if old is not None and old[0] == signature:
            return old[1]
        path = Path(run)
        if not is_run(path):
            return None
        entry = RunEntry(_summary(path), notes.read(path))
        if entry.summary.state not in UNSETTLED and not _is_unsettled(path, entry):
            fresh[run] = (signature, entry)
        return entry

    def _load(self) -> dict[str, tuple[str, RunEntry]]:
        if not self._file.exists():
            return {}
        try:
            with contextlib.closing(sqlite3.connect(self._file, timeout=1)) as db:
                if db.execute("PRAGMA user_version").fetchone()[0] != _version():
                    return {}
                return {path: (signature, _thawed(text)) for path, signature, text in db.execute(SELECT)}
        except sqlite3.OperationalError:
            return {}  # another process writes it
        except (sqlite3.DatabaseError, ValueError, KeyError, TypeError):
            self._discard()
            return {}

    def _store(self, fresh: dict[str, tuple[str, RunEntry]], gone: set[str]) -> None:
        if not fresh and not gone:
            return
        with contextlib.suppress(OSError, sqlite3.OperationalError):
            try:
                self._write(fresh, gone)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._discard()
                self._write(fresh, gone)

    def _write(self, fresh: dict[str, tuple[str, RunEntry]], gone: set[str]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self._file, timeout=1)) as db, db:
            db.execute("PRAGMA synchronous = OFF")
            if db.execute("PRAGMA user_version").fetchone()[0] != _version():
                db.execute("DROP TABLE IF EXISTS runs")
                db.execute(f"PRAGMA user_version = {_version()}")
            db.execute("CREATE TABLE IF NOT EXISTS runs (path TEXT PRIMARY KEY, signature TEXT, entry TEXT)")
            rows = [(path, signature, _frozen(entry)) for path, (signature, entry) in fresh.items()]
            db.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", rows)
            db.executemany("DELETE FROM runs WHERE path = ?", [(path,) for path in gone])
        with contextlib.suppress(OSError):
            self._file.chmod(0o600)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.unlink()


SELECT = "SELECT path, signature, entry FROM runs"


def _run_dirs(place: Path) -> Iterator[str]:
    """Every folder of a runs folder, run or not."""
    try:
        with os.scandir(place.resolve()) as found:
            yield from (entry.path for entry in found if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return


def _is_below(path: str, places: Iterable[Path]) -> bool:
    """A run of a folder that was not asked for now keeps its entry."""
    return str(Path(path).parent) in {str(place.resolve()) for place in places}


def _signature(run: str) -> str:
    """Changes whenever a file does that an entry is made of: files that are replaced have another inode and time."""
    marks = []
    for name in SIGNED:
        try:
            found = os.stat(f"{run}/{name}")  # noqa: PTH116 - ten thousand of them in a list of 2,000 runs
            marks.append(f"{found.st_ino},{found.st_size},{found.st_mtime_ns}")
        except OSError:
            marks.append("")
    return ";".join(marks)


def _is_unsettled(path: Path, entry: RunEntry) -> bool:
    """A run that looks crashed may be another's, on a drive where its lock cannot be seen."""
    if entry.summary.state != "crashed":
        return False
    return not (path / stored.LOCK_FILE).exists()


def _summary(path: Path) -> RunSummary:
    summary = summary_of(RunFolder(path))
    if summary.state not in LIVE_STATES:
        return summary
    newest = live.newest_step(path)
    return dataclasses.replace(summary, last_step=newest.step) if newest else summary


def _placed(entry: RunEntry, waiting: dict[str, int]) -> RunEntry:
    place = waiting.get(str(entry.path))
    return entry if place is None else dataclasses.replace(entry, queue_place=place)


def _frozen(entry: RunEntry) -> str:
    summary = dataclasses.asdict(entry.summary)
    return json.dumps([{**summary, "path": str(entry.path)}, dataclasses.asdict(entry.notes)])


def _thawed(text: str) -> RunEntry:
    summary, kept = parsing.from_json(text)
    summary["path"], summary["notices"] = Path(summary["path"]), tuple(summary["notices"])
    kept["tags"] = tuple(kept["tags"])
    return RunEntry(RunSummary(**summary), Notes(**kept))


def _version() -> int:
    """Another program version with other fields makes the cache anew."""
    import zlib

    names = [f.name for cls in (RunSummary, Notes) for f in dataclasses.fields(cls)]
    return zlib.crc32(" ".join(names).encode()) & 0x7FFFFFFF


def as_json(entry: RunEntry) -> dict[str, Any]:
    """An entry as one flat object."""
    kept = entry.notes
    return {
        **dataclasses.asdict(entry.summary),
        "state": entry.state,
        "title": entry.title,
        "note": kept.note,
        "tags": list(kept.tags),
        "queue_place": entry.queue_place,
        "progress": entry.progress,
    }
