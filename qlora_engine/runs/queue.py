"""The queue: an ordered list of planned or broken-off runs in `QLORA_HOME/queue.json`, which runners carry out. Torch-free.

The file is sealed and replaced as a whole under a lock of the operating system, so that a window, terminals and runners may
change it at once and a kill at any moment leaves the list of before or of after. A run stays in it until it is over.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qlora_engine import paths
from qlora_engine.errors import EngineError
from qlora_engine.runs import ownership, plans, sealed
from qlora_engine.runs.record import LIVE_STATES, RunFolder
from qlora_engine.runs.summary import summary_of

QUEUE_FILE, LOCK_FILE = "queue.json", "queue.lock"
LOCK_SECONDS = 10.0
DONE_KEPT = 200
CPU = "cpu"


@dataclass(frozen=True)
class Entry:
    """A run that waits or is being run. `device` is its job's (auto, cuda, cpu); `gpu` pins it to one (`gpu0`), empty: any."""

    run_dir: Path
    device: str = "auto"
    gpu: str = ""
    added_unix: float = 0.0
    runner: Mapping[str, Any] | None = None
    """Who runs it, as `ownership.identity` with `place`; None while it waits."""
    engine: Mapping[str, Any] | None = None
    """The engine's process, which may outlive its runner and takes seconds before the run is its own."""


@dataclass(frozen=True)
class Done:
    """What became of a run of the queue: finished, stopped, failed, crashed or gone."""

    run_dir: Path
    state: str
    error: str = ""
    ended_unix: float = 0.0


@dataclass(frozen=True)
class Queue:
    """`entries` in the order in which they are run; `done` oldest first. `not_before_unix`: nothing begins earlier."""

    entries: tuple[Entry, ...] = ()
    done: tuple[Done, ...] = ()
    is_paused: bool = False
    not_before_unix: float | None = None
    problem: str = ""

    def is_held(self, now: float | None = None) -> bool:
        """A time is set before which nothing begins, and it has not come."""
        return (self.not_before_unix or 0.0) > (time.time() if now is None else now)

    def waits_at(self, place: str) -> bool:
        """Something is left to do there, if not at this moment."""
        return any(entry.runner is None and may_run(entry, place) for entry in self.entries)

    def find(self, run_dir: Path) -> Entry | None:
        return next((entry for entry in self.entries if entry.run_dir == run_dir), None)


def read() -> Queue:
    """The queue as it is. Never raises: why it cannot be read is in `problem`."""
    try:
        return _decoded(sealed.read(_file()))
    except FileNotFoundError:
        return Queue()
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Queue(problem=f"the queue cannot be read: {error}")


def places() -> dict[str, int]:
    """Folder -> place among those that wait, as `move` takes it, 1 for the next; 0 for one that is being run."""
    entries = read().entries
    waiting = [entry for entry in entries if entry.runner is None]
    running = {str(entry.run_dir): 0 for entry in entries if entry.runner is not None}
    return {**running, **{str(entry.run_dir): place for place, entry in enumerate(waiting, 1)}}


def add(folder: RunFolder, *, gpu: str = "", first: bool = False) -> Queue:
    """Put a planned or broken-off run at the end, or before all others that wait.

    Raises:
        EngineError: it is over, is being trained, or waits already; or the queue cannot be written.
    """
    state = folder.state()
    if state in LIVE_STATES or not (plans.is_startable(folder) or summary_of(folder).is_resumable):
        raise EngineError(
            "queue.state",
            f"run {folder.run_id!r} is {state} and cannot be queued",
            f"make a new run from it: `qlora runs duplicate {folder.run_id}`",
        )
    entry = Entry(folder.path.resolve(), folder.job().model.device, gpu, time.time())

    def change(queue: Queue) -> Queue:
        if queue.find(entry.run_dir):
            raise EngineError(
                "queue.twice", f"run {folder.run_id!r} is in the queue already", "`qlora queue list`"
            )
        running = [e for e in queue.entries if e.runner]
        waiting = [e for e in queue.entries if not e.runner]
        ordered = (*running, entry, *waiting) if first else (*queue.entries, entry)
        return replace(queue, entries=tuple(ordered))

    return _change(change)


def remove(run_dir: Path) -> Queue:
    """Take a waiting run out. It stays among the runs, as it was.

    Raises:
        EngineError: it is not in the queue, or is being run.
    """
    return _change(lambda queue: replace(queue, entries=_without(queue, _waiting(queue, run_dir))))


def move(run_dir: Path, place: int) -> Queue:
    """Put a waiting run at a place among those that wait, 1 for the next.

    Raises:
        EngineError: it is not in the queue, or is being run.
    """

    def change(queue: Queue) -> Queue:
        entry = _waiting(queue, run_dir)
        rest = _without(queue, entry)
        running = sum(bool(e.runner) for e in rest)
        at = running + max(0, min(place - 1, len(rest) - running))
        ordered = sorted(rest, key=lambda e: not e.runner)
        return replace(queue, entries=(*ordered[:at], entry, *ordered[at:]))

    return _change(change)


def pause(is_paused: bool = True) -> Queue:
    """Begin no further run, or go on; what is being run is left alone."""
    return _change(lambda queue: replace(queue, is_paused=is_paused))


def start_at(unix: float | None) -> Queue:
    """Begin no run before this moment; None: at once."""
    return _change(lambda queue: replace(queue, not_before_unix=unix))


def take(place: str, now: float | None = None) -> Entry | None:
    """For a runner at `place` (`gpu0`, `cpu`): the first that may run there, marked as its own; None while none may."""
    taken: list[Entry] = []

    def change(queue: Queue) -> Queue:
        if queue.is_paused or queue.is_held(now):
            return queue
        for entry in queue.entries:
            if entry.runner is None and may_run(entry, place):
                mine = replace(entry, runner={**ownership.identity(os.getpid()), "place": place})
                taken.append(mine)
                return replace(queue, entries=tuple(mine if e is entry else e for e in queue.entries))
        return queue

    _change(change)
    return taken[0] if taken else None


def give_back(run_dir: Path) -> None:
    """For a runner: let it wait again, where it stood."""

    def change(queue: Queue) -> Queue:
        entries = (replace(e, runner=None, engine=None) if e.run_dir == run_dir else e for e in queue.entries)
        return replace(queue, entries=tuple(entries))

    _change(change)


def note_engine(run_dir: Path, pid: int) -> None:
    """For a runner: which process it started."""
    mine = ownership.identity(pid)

    def change(queue: Queue) -> Queue:
        entries = (replace(e, engine=mine) if e.run_dir == run_dir else e for e in queue.entries)
        return replace(queue, entries=tuple(entries))

    _change(change)


def finish(run_dir: Path, state: str, error: str = "") -> None:
    """For a runner: it is over, one way or another."""

    def change(queue: Queue) -> Queue:
        entry = queue.find(run_dir)
        if entry is None:
            return queue
        done = (*queue.done, Done(run_dir, state, error, time.time()))[-DONE_KEPT:]
        return replace(queue, entries=_without(queue, entry), done=done)

    _change(change)


def abandoned() -> list[Entry]:
    """Entries whose runner is gone."""
    return [e for e in read().entries if e.runner is not None and not ownership.is_alive(e.runner)]


def may_run(entry: Entry, place: str) -> bool:
    """True where the entry's job can run at `place`: a job for CUDA never on the CPU, a pinned one only where it is pinned."""
    if entry.gpu:
        return entry.gpu == place
    return place != CPU or entry.device != "cuda"


def _without(queue: Queue, entry: Entry) -> tuple[Entry, ...]:
    return tuple(e for e in queue.entries if e is not entry)


def _waiting(queue: Queue, run_dir: Path) -> Entry:
    entry = queue.find(run_dir)
    if entry is None:
        raise EngineError("queue.missing", f"run {run_dir.name!r} is not in the queue", "`qlora queue list`")
    if entry.runner:
        raise EngineError("queue.running", f"run {run_dir.name!r} is being run", "stop it first")
    return entry


def _file() -> Path:
    return paths.home() / QUEUE_FILE


def _change(change: Callable[[Queue], Queue]) -> Queue:
    """Read, change, write, with nobody between.

    Raises:
        EngineError: what `change` raises, or the queue cannot be written.
    """
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.parent / LOCK_FILE):
            old = read()
            if old.problem:
                file.replace(file.with_name("queue.damaged.json"))
            new = change(old)
            if new is not old:
                sealed.write_aside(file, sealed.sealed(_encoded(new), indent=1))
            return new
    except OSError as error:
        raise EngineError(
            "queue.not_writable",
            f"the queue cannot be written: {error.strerror or error}",
            f"check {file.parent}",
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = ownership.Lock(path)
    until = time.monotonic() + LOCK_SECONDS
    while not lock.take():
        if time.monotonic() > until:
            raise EngineError("queue.busy", "another program holds the queue", "try again in a moment")
    try:
        yield
    finally:
        lock.release()


def _encoded(queue: Queue) -> dict[str, Any]:
    entries = [{**asdict(entry), "run_dir": str(entry.run_dir)} for entry in queue.entries]
    done = [{**asdict(one), "run_dir": str(one.run_dir)} for one in queue.done]
    return {
        "schema_version": 1,
        "is_paused": queue.is_paused,
        "not_before_unix": queue.not_before_unix,
        "entries": entries,
        "done": done,
    }


def _decoded(plain: Mapping[str, Any]) -> Queue:
    entries = tuple(Entry(**{**one, "run_dir": Path(one["run_dir"])}) for one in plain["entries"])
    done = tuple(Done(**{**one, "run_dir": Path(one["run_dir"])}) for one in plain["done"])
    return Queue(entries, done, bool(plain["is_paused"]), plain["not_before_unix"])
