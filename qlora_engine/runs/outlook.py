"""What is at work now, and how long it and what waits will take: told from runs of the past, never guessed. Torch-free."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qlora_engine.config import TrainingConfig
from qlora_engine.errors import EngineError
from qlora_engine.runs import live, queue_runner
from qlora_engine.runs.index import RunEntry, RunIndex
from qlora_engine.runs.queue import CPU, Entry, Queue
from qlora_engine.runs.record import RunFolder

LOOKED_AT = 20
"""The newest finished runs that are asked how long a step takes."""


@dataclass(frozen=True)
class Busy:
    """A run that trains where another is about to start. `left_seconds`: None while unknown."""

    entry: RunEntry
    place: str
    left_seconds: float | None

    @property
    def message(self) -> str:
        """The warning, as one sentence."""
        where = queue_runner.title(self.place)
        return (
            f"{where[0].upper()}{where[1:]} is training run {self.entry.title}: a second one there makes both slower, "
            "and may run out of memory"
        )


@dataclass(frozen=True)
class Forecast:
    """When a run of the queue begins and ends, in seconds from now; None where nothing comparable has run."""

    entry: Entry
    begins_seconds: float | None
    ends_seconds: float | None


def busy_with(config: TrainingConfig, entries: Iterable[RunEntry] | None = None) -> Busy | None:
    """The live run, of whatever process, that a start with this job would disturb; None: the way is free.

    Call it before a Start; where it finds one, warn with `message` and offer `queue.add` instead.
    """
    found = [entry for entry in (RunIndex().entries() if entries is None else entries) if entry.is_live]
    return busy_at(_place(config.model.device), found) if found else None


def busy_at(place: str, entries: Iterable[RunEntry] | None = None) -> Busy | None:
    """The live run at a place (`gpu0`, `cpu`); None: there is none."""
    for entry in RunIndex().entries() if entries is None else entries:
        if entry.is_live and _place(_device(entry)) == place:
            return Busy(entry, place, left_seconds(entry))
    return None


def left_seconds(entry: RunEntry) -> float | None:
    """What a live run says it has left; None before its second step."""
    newest = live.newest_step(entry.path) if entry.is_live else None
    return newest.eta_seconds if newest else None


def seconds_of(config: TrainingConfig, entries: Iterable[RunEntry]) -> float | None:
    """How long a run with this job takes: rows to be trained, at the pace of the newest finished run of the same model,
    length and device. None where there is none, or where the number of rows is not known."""
    for entry in _finished(entries, config):
        try:
            folder = RunFolder(entry.path)
            record, job = folder.record(), folder.job()
        except EngineError:
            continue
        plan, seconds = record.get("plan") or {}, record.get("train_seconds")
        is_alike = job.model == config.model and job.data.seq_len == config.data.seq_len
        if not is_alike or not seconds or not record.get("last_step"):
            continue
        pace = seconds / (record["last_step"] * job.training.effective_batch)
        rows = plan.get("train_rows") if job.data == config.data else None
        steps = _steps(config, rows)
        return None if steps is None else steps * config.training.effective_batch * pace
    return None


def forecast(queue: Queue, entries: Sequence[RunEntry], now: float | None = None) -> list[Forecast]:
    """Begin and end of everything in the queue, if one run follows another on one GPU."""
    by_path = {entry.path: entry for entry in entries}
    now = time.time() if now is None else now
    clock: float | None = max(0.0, (queue.not_before_unix or now) - now)
    found = []
    for waiting in queue.entries:
        needed = _needed(waiting, by_path.get(waiting.run_dir), entries)
        begins = 0.0 if waiting.runner else clock
        ends = None if begins is None or needed is None else begins + needed
        found.append(Forecast(waiting, begins, ends))
        clock = ends
    return found


def tonight(hour: int = 22, now: float | None = None) -> float:
    """The next moment at which the local clock shows this hour, as a Unix time."""
    local = time.localtime(now)
    today = time.mktime((local.tm_year, local.tm_mon, local.tm_mday, hour, 0, 0, 0, 0, -1))
    if today > (time.time() if now is None else now):
        return today
    return time.mktime((local.tm_year, local.tm_mon, local.tm_mday + 1, hour, 0, 0, 0, 0, -1))


def _needed(waiting: Entry, entry: RunEntry | None, entries: Sequence[RunEntry]) -> float | None:
    if entry is None:
        return None
    if entry.is_live:
        return left_seconds(entry)
    try:
        whole = seconds_of(RunFolder(waiting.run_dir).asked()[0], entries)
    except EngineError:
        return None
    return None if whole is None else whole * (1 - (entry.progress or 0.0))


def _finished(entries: Iterable[RunEntry], config: TrainingConfig) -> list[RunEntry]:
    alike = [e for e in entries if e.state == "finished" and e.summary.model == config.model.name]
    return sorted(alike, key=lambda e: e.summary.data != config.data.path)[:LOOKED_AT]


def _steps(config: TrainingConfig, rows: int | None) -> int | None:
    training = config.training
    by_epochs = None if rows is None else math.ceil(rows / training.effective_batch) * training.epochs
    known = [steps for steps in (training.max_steps, by_epochs) if steps is not None]
    return math.ceil(min(known)) if known else None


def _device(entry: RunEntry) -> str:
    """Where a live run trains: as its record tells, else as its job asks."""
    try:
        folder = RunFolder(entry.path)
        plan = folder.record().get("plan") or {}
        return str(plan.get("device") or folder.job().model.device)
    except EngineError:
        return "auto"


def _place(device: str) -> str:
    """The place of `auto`, `cuda`, `cuda:1` or `cpu`."""
    if device == CPU:
        return CPU
    index = device.partition(":")[2]
    return f"gpu{index}" if index else queue_runner.places_here()[0]
