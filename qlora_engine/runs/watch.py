"""Watching a run that another process owns: its events as they come, from its folder alone. Torch-free.

`Watch.new()` is for whoever has a timer of its own; `WatchEngine` looks like an engine, so that what drives and shows a run
of this process drives and shows that of another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qlora_engine import events
from qlora_engine.control import STOP_SAVE
from qlora_engine.errors import EngineError
from qlora_engine.events import Event, MemorySampled, RunFailed, RunFinished, RunStopped
from qlora_engine.jobs import Job
from qlora_engine.monitor.trace import TraceTail
from qlora_engine.runs import commands, live, sealed, stored
from qlora_engine.runs.record import LIVE_STATES, RunFolder

POLL_SECONDS = 0.25


class Watch:
    """The events of one run since the last look. Nothing is written, and the run does not notice."""

    def __init__(self, run_dir: Path | str, *, with_history: bool = True) -> None:
        """`with_history`: the first look tells everything since the run began, else only what comes from now on.

        Raises:
            EngineError: there is no such run.
        """
        self.folder = RunFolder.open(run_dir)
        self._metrics = self.folder.metrics_path
        self._offset = 0 if with_history else _size(self._metrics)
        self._memory = TraceTail(self.folder.memory_path, from_end=True)
        self._live: list[Event] = []
        self.end: Event | None = None
        """The terminal event, once the run is over or its process gone."""

    def new(self) -> list[Event]:
        """Events since the last call, in order; the last one ever is terminal. Never raises for what the folder holds.

        Steps that a crash threw away are among the history of a resumed run; the RunStarted after them says from where it
        went on.
        """
        if self.end is not None:
            return []
        state, record = _state(self.folder)  # before the files: what is written between is told next time
        found = [*self._told(), *self._phase(state), *map(MemorySampled, self._memory.new())]
        if state not in (*LIVE_STATES, "new"):
            found += self._told()
            self.end = terminal(self.folder, state, record)
            found.append(self.end)
        return found

    def _told(self) -> list[Event]:
        """Whole new lines of `metrics.jsonl`."""
        try:
            with self._metrics.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.decode("utf-8", errors="replace").split("\n")
        return [event for line in lines if (event := _event(line)) is not None]

    def _phase(self, state: str) -> list[Event]:
        now = live.read(self.folder.path) if state in LIVE_STATES else []
        before, self._live = self._live, now or self._live
        return [event for event in now if event not in before]


class WatchEngine:
    """An engine whose job runs elsewhere. `run(job)` ignores the job; `send` and `request_stop` reach the owner through the
    run's folder; `leave` ends the watching, not the run."""

    def __init__(self, run_dir: Path | str) -> None:
        """Raises EngineError: there is no such run."""
        self._watch = Watch(run_dir)
        self._left = threading.Event()

    @property
    def run_dir(self) -> Path:
        return self._watch.folder.path

    def run(self, job: Job | None = None) -> Iterator[Event]:
        """Everything since the run began, then what comes; ends with a terminal event, or with RunLeft after `leave`."""
        while True:
            yield from self._watch.new()
            if self._watch.end is not None:
                return
            if self._left.wait(POLL_SECONDS):
                yield events.RunLeft(str(self.run_dir))
                return

    def send(self, command: Mapping[str, Any]) -> None:
        """Ask the owner; asking one that has just ended is no error."""
        try:
            commands.send(self.run_dir, command)
        except EngineError as error:
            if error.code != "run.idle":
                raise

    def request_stop(self, mode: str = STOP_SAVE) -> None:
        self.send({"command": "stop", "mode": mode})

    def leave(self) -> None:
        """Watch no more; the run goes on."""
        self._left.set()


def terminal(folder: RunFolder, state: str, record: Mapping[str, Any]) -> Event:
    """How a run that is over ended, as its own engine would have said it."""
    result = {"run_id": folder.run_id, "run_dir": str(folder.path)}
    if state == "finished":
        kept = (
            "loss_before",
            "loss_after",
            "best_step",
            "last_step",
            "tokens_seen",
            "train_seconds",
            "samples",
        )
        known = {key: record[key] for key in (*kept, "measured_peak_bytes") if key in record}
        return RunFinished({**result, "adapter": str(folder.adapter_dir), **known})
    is_resumable = bool(folder.checkpoints())
    if state == stored.PLANNED:
        return RunStopped("it has not begun", is_resumable=False, result=result)
    if state == "stopped":
        return RunStopped("stopped by the user", is_resumable, {**result, "step": record.get("last_step")})
    error = record.get("error") or {}
    if error.get("code"):
        return RunFailed(str(error["code"]), str(error.get("message", "")), str(error.get("hint", "")))
    hint = f"go on from its checkpoint: `qlora resume {folder.run_id}`" if is_resumable else "start it again"
    return RunFailed(
        "engine.gone", "The process that trained this run is gone", hint, None, stored.log_tail(folder.path)
    )


def _state(folder: RunFolder) -> tuple[str, Mapping[str, Any]]:
    try:
        record = folder.record()
        return folder.state(record), record
    except EngineError as error:
        return "unreadable", {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def _event(line: str) -> Event | None:
    if not line.strip() or not sealed.is_sealed_line(line):
        return None
    try:
        return events.decode(line)
    except ValueError:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
