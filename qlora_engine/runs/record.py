"""The run folder: `job.toml`, `run.json`, `metrics.jsonl`, `memory.jsonl`, `log.txt`, `checkpoints/`, `adapter/`.

Writers write aside, fsync and rename; readers say what is missing and show what is there. Torch-free.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from qlora_engine import config_io, events, parsing, paths
from qlora_engine.config import TrainingConfig
from qlora_engine.errors import EngineError

RUN_SCHEMA_VERSION = 1
LIVE_STATES = ("running", "paused")
RESUMABLE_STATES = ("stopped", "crashed", "failed")
CHECKPOINT_MARK = "checkpoint.json"


@dataclass(frozen=True)
class RunSummary:
    """One line of the history. `notices` say what is missing or unreadable; unknown values are None."""

    run_id: str
    path: Path
    state: str
    model: str
    data: str
    created_unix: float | None
    finished_unix: float | None
    last_step: int | None
    total_steps: int | None
    loss_before: float | None
    loss_after: float | None
    predicted_peak_bytes: int | None
    measured_peak_bytes: int | None
    is_resumable: bool
    notices: tuple[str, ...] = ()
    has_adapter: bool = False


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter_dir = path / "adapter"
        self.checkpoints_dir = path / "checkpoints"
        self.log_path = path / "log.txt"
        self.memory_path = path / "memory.jsonl"
        self.metrics_path = path / "metrics.jsonl"

    @property
    def run_id(self) -> str:
        return self.path.name

    @classmethod
    def create(cls, config: TrainingConfig) -> RunFolder:
        """A new folder with its job file and record.

        Raises:
            EngineError: the runs folder cannot be written, or a run of that name exists.
        """
        parent = paths.runs_dir(config.output.runs_dir)
        folder = cls(_free_path(parent, config))
        try:
            folder.path.mkdir(parents=True, exist_ok=False)
            folder.checkpoints_dir.mkdir()
            config_io.save(config, folder.path / "job.toml")
        except FileExistsError as error:
            raise EngineError(
                "output.exists", f"a run named {folder.run_id!r} exists already", "choose another output.name"
            ) from error
        except OSError as error:
            raise EngineError(
                "output.not_writable",
                f"the runs folder {parent} cannot be written: {error.strerror or error}",
                "choose another folder with output.runs_dir",
            ) from error
        folder.write_record({"run_id": folder.run_id, "state": "new", "created": time.time()})
        return folder

    @classmethod
    def open(cls, where: Path | str) -> RunFolder:
        """An existing run: a folder, or the name of one in the default runs folder.

        Raises:
            EngineError: there is no such run.
        """
        candidates = [Path(where).expanduser(), paths.runs_dir() / str(where)]
        for candidate in candidates:
            if (candidate / "job.toml").is_file() or (candidate / "run.json").is_file():
                return cls(candidate.resolve())
        raise EngineError("run.missing", f"there is no run {str(where)!r}", "see the runs with `qlora runs`")

    def job(self) -> TrainingConfig:
        return config_io.load(self.path / "job.toml")

    def record(self) -> dict[str, Any]:
        """`run.json`.

        Raises:
            EngineError: it is missing, not JSON, or written by a newer program.
        """
        try:
            record = parsing.from_json((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EngineError(
                "run.unreadable",
                f"the record of run {self.run_id!r} cannot be read: {error}",
                "look at its folder",
            ) from error
        version = record.get("schema_version") if isinstance(record, dict) else None
        if not isinstance(version, int) or version > RUN_SCHEMA_VERSION:
            raise EngineError(
                "run.newer",
                f"run {self.run_id!r} has record version {version}; this program knows {RUN_SCHEMA_VERSION}",
                "update QLoRA Studio",
            )
        return record

    def write_record(self, record: Mapping[str, Any]) -> None:
        text = json.dumps({"schema_version": RUN_SCHEMA_VERSION, **record}, indent=1, ensure_ascii=False)
        write_aside(self.path / "run.json", text.encode("utf-8"))

    def update(self, **values: Any) -> None:
        """Change keys of `run.json`."""
        self.write_record({**self.record(), **values})

    def claim(self) -> None:
        """Mark this process as the one that runs it.

        Raises:
            EngineError: another live process runs it.
        """
        record = self.record()
        if record.get("state") in LIVE_STATES and record.get("pid") != os.getpid() and is_alive(record):
            raise EngineError(
                "run.busy",
                f"run {self.run_id!r} is being trained by process {record['pid']}",
                "stop that one first",
            )
        started = psutil.Process().create_time()
        self.update(state="running", pid=os.getpid(), pid_started=started)

    def append(self, event: events.Event) -> None:
        """Add one line to `metrics.jsonl`; the line is with the system when this returns."""
        append_line(self.metrics_path, events.encode(event))

    def metrics(self) -> Iterator[events.Event]:
        """The events of `metrics.jsonl` as one consistent history.

        Steps that a crash threw away (a resume began before them) and half-written lines are left out.
        """
        kept: list[events.Event] = []
        for line in _lines(self.metrics_path):
            try:
                event = events.decode(line)
            except ValueError:
                continue
            if isinstance(event, events.RunStarted) and event.is_resumed:
                kept = [e for e in kept if getattr(e, "step", 0) <= event.from_step]
            kept.append(event)
        return iter(kept)

    def memory(self) -> Iterator[dict[str, Any]]:
        """The samples of `memory.jsonl`, oldest first; a half-written last line is left out."""
        for line in _lines(self.memory_path):
            try:
                sample = parsing.from_json(line)
            except ValueError:
                continue
            if isinstance(sample, dict):
                yield sample

    def log_tail(self, lines: int = 40) -> str:
        if not self.log_path.exists():
            return ""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first. One that lost a file or a byte is not complete."""
        found = []
        if self.checkpoints_dir.is_dir():
            for folder in self.checkpoints_dir.iterdir():
                match = re.fullmatch(r"step-(\d+)", folder.name)
                if match and is_complete(folder):
                    found.append((int(match[1]), folder))
        return [folder for _, folder in sorted(found)]

    def state(self) -> str:
        """The state a person is told: a run whose process is gone is `crashed`."""
        record = self.record()
        state = str(record.get("state", "crashed"))
        if state in (*LIVE_STATES, "new") and not is_alive(record):
            return "crashed"
        return state

    def summary(self) -> RunSummary:
        """Never raises: what cannot be read is said in `notices`."""
        notices = []
        try:
            record = self.record()
            state = self.state()
        except EngineError as error:
            record, state = {}, "unreadable"
            notices.append(error.message)
        plan = record.get("plan") or {}
        checkpoints = self.checkpoints()
        if record.get("last_checkpoint") and not checkpoints and state != "finished":
            notices.append("its checkpoints are missing")
        return RunSummary(
            run_id=self.run_id,
            path=self.path,
            state=state,
            model=str((record.get("model") or {}).get("name") or self._asked_for("model", "name")),
            data=str((record.get("data") or {}).get("path") or self._asked_for("data", "path")),
            created_unix=record.get("created"),
            finished_unix=record.get("finished"),
            last_step=record.get("last_step"),
            total_steps=plan.get("total_steps"),
            loss_before=record.get("loss_before"),
            loss_after=record.get("loss_after"),
            predicted_peak_bytes=record.get("predicted_peak_bytes"),
            measured_peak_bytes=record.get("measured_peak_bytes"),
            is_resumable=state in RESUMABLE_STATES and bool(checkpoints),
            notices=tuple(notices),
            has_adapter=(self.adapter_dir / "adapter_model.safetensors").is_file(),
        )

    def _asked_for(self, table: str, name: str) -> str:
        """What the job file says, for a run that failed before its record could."""
        try:
            return str(getattr(getattr(self.job(), table), name))
        except EngineError:
            return "n/a"

    def delete(self) -> None:
        """Remove the folder and everything in it.

        Raises:
            EngineError: it is being trained.
        """
        if self.state() in LIVE_STATES:
            raise EngineError("run.busy", f"run {self.run_id!r} is being trained", "stop it first")
        shutil.rmtree(self.path)


def list_runs(runs_dir: Path | None = None) -> list[RunSummary]:
    """All runs, newest first."""
    parent = runs_dir or paths.runs_dir()
    if not parent.is_dir():
        return []
    folders = [p for p in parent.iterdir() if (p / "run.json").is_file() or (p / "job.toml").is_file()]
    summaries = [RunFolder(p).summary() for p in folders]
    return sorted(summaries, key=lambda s: s.created_unix or 0.0, reverse=True)


def is_alive(record: Mapping[str, Any]) -> bool:
    """True when the process that wrote the record still runs (same pid and same start time)."""
    pid = record.get("pid")
    if not isinstance(pid, int):
        return False
    try:
        process = psutil.Process(pid)
        started = record.get("pid_started")
        return process.status() != psutil.STATUS_ZOMBIE and (
            started is None or abs(process.create_time() - started) < 2
        )
    except psutil.Error:
        return False


def is_complete(checkpoint: Path) -> bool:
    """True when every file named in the checkpoint's mark has the size written there."""
    try:
        mark = parsing.from_json((checkpoint / CHECKPOINT_MARK).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in mark["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write_aside(path: Path, content: bytes) -> None:
    """Replace `path` as a whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def append_line(path: Path, line: str) -> None:
    """Add `line` to a file of lines; half a line that a killed writer left there is closed first, and spoils no other."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())


def _lines(path: Path) -> Iterator[str]:
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from file


def _free_path(parent: Path, config: TrainingConfig) -> Path:
    """The named folder, or one of its own for an unnamed run."""
    if config.output.name:
        return parent / _slug(config.output.name)
    name = _automatic_name(config)
    numbered = (parent / (name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    return next(path for path in numbered if not path.exists())


def _automatic_name(config: TrainingConfig) -> str:
    moment = time.strftime("%Y%m%d-%H%M%S")
    return f"{_slug(Path(config.model.name).stem or 'model')}-{_slug(Path(config.data.path).stem or 'data')}-{moment}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or "run"
