"""The run folder: `job.toml`, `run.json`, `metrics.jsonl`, `memory.jsonl`, `log.txt`, `checkpoints/`, `adapter/`.

Every file has a checksum of its own, in its mark or in each of its lines, or is made again from those that have; only
`log.txt`, written for people, has none. Readers say what is missing and show what is there. Torch-free.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qlora_engine import config_io, events, parsing, paths
from qlora_engine.config import TrainingConfig, tables
from qlora_engine.errors import EngineError
from qlora_engine.runs import claims, ownership, sealed, stored
from qlora_engine.runs.naming import free_path
from qlora_engine.runs.sealed import append_line, write_aside
from qlora_engine.runs.stored import (
    CHECKPOINT_MARK,
    JOB_FILE,
    LIVE_STATES,
    LOCK_FILE,
    RECORD_FILE,
    is_complete,
    step_of,
)

__all__ = [
    "CHECKPOINT_MARK",
    "LIVE_STATES",
    "RunFolder",
    "append_line",
    "is_complete",
    "step_of",
    "write_aside",
]


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter_dir = path / "adapter"
        self.checkpoints_dir = path / "checkpoints"
        self.log_path = path / stored.LOG_FILE
        self.memory_path = path / stored.MEMORY_FILE
        self.metrics_path = path / stored.METRICS_FILE
        self.job_path = path / JOB_FILE
        self._lock = ownership.Lock(path / LOCK_FILE)

    @property
    def run_id(self) -> str:
        return self.path.name

    @classmethod
    def create(cls, config: TrainingConfig, state: str = "new") -> RunFolder:
        """A new folder with its job file and record, in a state of `new` (about to run) or `planned`.

        Raises:
            EngineError: the runs folder cannot be written, or a run of that name exists.
        """
        parent = paths.runs_dir(config.output.runs_dir)
        folder = cls(free_path(parent, config))
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder.path.mkdir(mode=sealed.PRIVATE_FOLDER)
            _begin(folder, config, state)
        except OSError as error:
            if not folder.path.exists() or not isinstance(error, FileExistsError):
                raise EngineError(
                    "output.not_writable",
                    f"the runs folder {parent} cannot be written: {error.strerror or error}",
                    "choose another folder with output.runs_dir",
                ) from error
            raise EngineError(
                "output.exists", f"a run named {folder.run_id!r} exists already", "choose another output.name"
            ) from error
        return folder

    @classmethod
    def open(cls, where: Path | str) -> RunFolder:
        """An existing run: a folder, or the name of one in the default runs folder.

        Raises:
            EngineError: there is no such run.
        """
        candidates = [Path(where).expanduser(), paths.runs_dir() / str(where)]
        for candidate in candidates:
            if is_run(candidate):
                return cls(candidate.resolve())
        raise EngineError("run.missing", f"there is no run {str(where)!r}", "see the runs with `qlora runs`")

    def job(self) -> TrainingConfig:
        """What the run is, or was last, trained with.

        Raises:
            EngineError: neither its record nor its job file can be read.
        """
        try:
            return config_io.from_dict(self.record()["job"], f"the record of run {self.run_id!r}")
        except (EngineError, KeyError, TypeError):
            return config_io.load(self.job_path)

    def asked(self) -> tuple[TrainingConfig, str]:
        """What `job.toml` asks for now. Where it is missing, empty or cut, what the run was trained with, and why.

        Raises:
            EngineError: it asks for what cannot be, or there is nothing else to go by.
        """
        try:
            text = self.job_path.read_text(encoding="utf-8")
            problem = "" if set(tables()) <= set(parsing.from_toml(text)) else "it is not whole"
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or str(error)
        return (config_io.load(self.job_path), "") if not problem else (self.job(), problem)

    def record(self) -> dict[str, Any]:
        """`run.json`; where it is damaged or gone, what the newest checkpoint and the adapter keep of it, with
        `rebuilt_from`.

        Raises:
            EngineError: there is none, or it was written by a newer program.
        """
        try:
            return stored.record(self.path)
        except (OSError, ValueError) as error:
            rebuilt = stored.rebuilt_record(self.path)
            if rebuilt is not None:
                return rebuilt
            raise EngineError(
                "run.unreadable",
                f"the record of run {self.run_id!r} cannot be read: {getattr(error, 'strerror', None) or error}",
                "look at its folder",
            ) from error

    def write_record(self, record: Mapping[str, Any]) -> None:
        kept = {k: v for k, v in record.items() if k != "rebuilt_from"}
        content = {"schema_version": stored.RUN_SCHEMA_VERSION, **kept}
        write_aside(self.path / RECORD_FILE, sealed.sealed(content, indent=1))

    def update(self, **values: Any) -> None:
        """Change keys of `run.json`."""
        self.write_record({**self.record(), **values})

    def claim(self, *, even_elsewhere: bool = False, as_planned: bool = False) -> str:
        """Make this process the one that runs it, until `release`; what cannot be made sure of, in words.

        With `as_planned` it must not have begun: of two who start a planned run, one does.

        Raises:
            EngineError: another live process runs it, or may do so on another computer, or it has begun meanwhile.
            OSError: the folder cannot be written.
        """
        doubt = claims.take(self.path, self._lock, self.record(), even_elsewhere=even_elsewhere)
        try:
            if as_planned and self.record().get("state") != stored.PLANNED:
                raise EngineError(
                    "run.begun", f"run {self.run_id!r} has been started already", "watch it, or plan another"
                )
            self.path.chmod(sealed.PRIVATE_FOLDER)
            self.update(state="running", error=None, **ownership.identity(os.getpid()))
        except BaseException:
            self.release()
            raise
        return doubt

    def release(self) -> None:
        """Let others run it."""
        self._lock.release()

    def append(self, event: events.Event) -> None:
        """Add one line to `metrics.jsonl`; the line is with the system when this returns."""
        append_line(self.metrics_path, sealed.sealed_line(events.encode(event)))

    def metrics(self) -> Iterator[events.Event]:
        """The events of `metrics.jsonl` as one consistent history.

        Steps that a crash threw away (a resume began before them) and half-written lines are left out.
        """
        kept: list[events.Event] = []
        for line in _lines(self.metrics_path):
            if not sealed.is_sealed_line(line):
                continue
            try:
                event = events.decode(line)
            except ValueError:
                continue
            if isinstance(event, events.RunStarted) and event.is_resumed:
                kept = [e for e in kept if getattr(e, "step", 0) <= event.from_step]
            kept.append(event)
        return iter(kept)

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first. One that lost a file or a byte is not complete."""
        return stored.checkpoints(self.path)

    def state(self, record: Mapping[str, Any] | None = None) -> str:
        """The state a person is told: a run whose process is gone is `crashed`. `record`: where it was read already."""
        record = self.record() if record is None else record
        state = str(record.get("state", "crashed"))
        if state in (*LIVE_STATES, "new") and not claims.is_owned(self.path, record):
            return "crashed"
        return state


def _begin(folder: RunFolder, config: TrainingConfig, state: str) -> None:
    """Fill a new folder; one that cannot be filled is no run, and its name stays free. The record is its first file: a process
    that is ended here leaves no run, or one whose job can be told."""
    try:
        folder.checkpoints_dir.mkdir(mode=sealed.PRIVATE_FOLDER)
        job = config_io.to_dict(config)
        folder.write_record({"run_id": folder.run_id, "state": state, "created": time.time(), "job": job})
        config_io.save(config, folder.job_path)
    except OSError:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise


def is_run(path: Path) -> bool:
    """True for a folder with a job, a record or checkpoints in it."""
    try:
        return (path / JOB_FILE).is_file() or (path / RECORD_FILE).is_file() or bool(stored.checkpoints(path))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG):
            return False
        raise


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from file
