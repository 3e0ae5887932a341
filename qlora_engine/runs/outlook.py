"""What is at work now, and how long it and what waits will take: told from runs of the past, never guessed. Torch-free."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qlora_engine.config import TrainingConfig
from qlora_engine.errors import EngineError
from qlora_engine.runs import live, queue_runner
from qlora_engine.runs.index import RunEntry, RunIndex
from qlora_engine.runs.pace import Paces
from qlora_engine.runs.queue import CPU, Entry, Queue, may_run
from qlora_engine.runs.record import RunFolder

CLOCK = re.compile(r"([01]?\d|2[0-3])(?::([0-5]\d))?")
TONIGHT = "22:00"


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


def forecast(
    queue: Queue, entries: Sequence[RunEntry], now: float | None = None, places: Sequence[str] | None = None
) -> list[Forecast]:
    """Begin and end of everything in the queue: in its order, each as soon as a GPU (`places`: those of this computer) is
    free. What waits in a queue that pauses has no begin."""
    if not queue.entries:
        return []
    by_path, paces = {entry.path: entry for entry in entries}, Paces(entries)
    now = time.time() if now is None else now
    held = math.inf if queue.is_paused else max(0.0, (queue.not_before_unix or now) - now)
    free = {place: _free_in(place, queue, entries) for place in places or queue_runner.places_here()}
    found = []
    for entry in sorted(queue.entries, key=lambda one: one.runner is None):
        place = _place_of(entry, free)
        begins = 0.0 if entry.runner else max(held, free.get(place, math.inf))
        needed = _needed(entry, by_path.get(entry.run_dir), paces)
        free[place] = ends = begins + (math.inf if needed is None else needed)
        found.append(Forecast(entry, _known(begins), _known(ends)))
    return found


def whole_seconds(forecasts: Sequence[Forecast]) -> float | None:
    """When everything in the queue is over, in seconds from now; None where that of one run is not known."""
    ends = [one.ends_seconds for one in forecasts]
    known = [end for end in ends if end is not None]
    return max(known) if known and len(known) == len(ends) else None


def next_time(text: str, now: float | None = None) -> float:
    """The next moment at which the local clock shows `HH:MM` (or `HH`), as a Unix time.

    Raises:
        EngineError: it is no time of the day.
    """
    found = CLOCK.fullmatch(text.strip())
    if found is None:
        raise EngineError(
            "queue.time", f"{text!r} is no time of the day", "write it as hours and minutes: 22:00"
        )
    hour, minute = int(found[1]), int(found[2] or 0)
    now = time.time() if now is None else now
    local = time.localtime(now)
    moments = (
        time.mktime((local.tm_year, local.tm_mon, local.tm_mday + day, hour, minute, 0, 0, 0, -1))
        for day in range(2)
    )
    return next(moment for moment in moments if moment > now)


def _free_in(place: str, queue: Queue, entries: Sequence[RunEntry]) -> float:
    """Seconds until a run that a person started by hand leaves the GPU, which it has first; infinite while that is unknown."""
    by_hand = [entry for entry in entries if entry.is_live and queue.find(entry.path) is None]
    busy = busy_at(place, by_hand) if by_hand else None
    left = 0.0 if busy is None else busy.left_seconds
    return math.inf if left is None else left


def _place_of(entry: Entry, free: Mapping[str, float]) -> str:
    """Where it is run, or will be: the GPU that is free first; empty for one that none here may run."""
    if entry.runner:
        return str(entry.runner.get("place"))
    return min((place for place in free if may_run(entry, place)), key=lambda place: free[place], default="")


def _needed(waiting: Entry, entry: RunEntry | None, paces: Paces) -> float | None:
    if entry is None:
        return None
    if entry.is_live:
        return left_seconds(entry)
    try:
        whole = paces.seconds_of(RunFolder(waiting.run_dir).asked()[0])
    except EngineError:
        return None
    return None if whole is None else whole * (1 - (entry.progress or 0.0))


def _known(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


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
