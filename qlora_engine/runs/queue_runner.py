"""Carries out the queue, one run after another on one GPU: in a terminal (`qlora queue run`) or as a process of its own,
which a window starts and may outlive it by. Torch-free.

There is one runner a GPU, by a lock. Its engines are detached: a runner that is killed leaves its run at work, and the next
one waits for that run before it begins another.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from qlora_engine import child, paths
from qlora_engine.client import ProcessEngine
from qlora_engine.control import STOP_SAVE
from qlora_engine.errors import EngineError
from qlora_engine.events import TERMINAL, Event, RunFailed, RunFinished, RunStopped
from qlora_engine.monitor.nvml import Nvml
from qlora_engine.monitor.nvml_words import Unavailable
from qlora_engine.runs import ownership, plans, queue
from qlora_engine.runs.queue import CPU, Entry
from qlora_engine.runs.record import LIVE_STATES, RunFolder
from qlora_engine.runs.watch import WatchEngine
from qlora_engine.training.awake import kept_awake

POLL_SECONDS = 1.0
LOG_FILE = "queue.log"
PLACE = re.compile(r"cpu|gpu\d{1,3}")
OTHERS = ("run.busy", "run.begun")
"""How an engine fails whose run another has."""
Hear = Callable[[Event], None]
Driver = ProcessEngine | WatchEngine


class Runner:
    """Takes runs from the queue until none is left that may run at its `place` (`gpu0`, `gpu1`, ..., or `cpu`)."""

    def __init__(
        self, place: str, hear: Hear | None = None, make_engine: Callable[[], ProcessEngine] = ProcessEngine
    ) -> None:
        self.place = place
        self._hear = hear or (lambda event: None)
        self._make_engine = make_engine
        self._engine: Driver | None = None
        self._is_stopping = threading.Event()
        self.count = 0
        """Runs that it saw to their end."""

    def run(self, *, stay: bool = False) -> None:
        """Work until nothing is left to do or `stop`; with `stay`, until `stop`.

        Raises:
            EngineError: another runner is at work there.
        """
        paths.home().mkdir(parents=True, exist_ok=True)
        while True:
            lock = ownership.Lock(_lock_file(self.place))
            if not lock.take():
                raise EngineError(
                    "queue.runner",
                    f"the queue is being run on {title(self.place)} already",
                    "see `qlora queue list`",
                )
            try:
                self._work(stay)
            finally:
                lock.release()
            # Whoever added a run while the lock was held has started no runner: look once more.
            if self._is_stopping.is_set() or not queue.read().waits_at(self.place):
                return

    def stop(self) -> None:
        """Save and end the run at work, which waits again, and take no other. Safe from any thread."""
        self._is_stopping.set()
        if self._engine is not None:
            self._engine.request_stop(STOP_SAVE)

    def _work(self, stay: bool) -> None:
        while not self._is_stopping.is_set():
            self._settle_abandoned()
            if queue.read().waits_at(self.place):
                self._wait_for_others()
            entry = None if self._is_stopping.is_set() else queue.take(self.place)
            if entry is not None:
                self._carry_out(entry)
            elif not stay and not queue.read().waits_at(self.place):
                return
            else:
                self._rest()

    def _rest(self) -> None:
        """A moment, or up to the time that is set: who lines runs up for the night means a computer that is awake then."""
        with kept_awake(_is_held(self.place), "queue"):
            while not self._is_stopping.wait(POLL_SECONDS) and _is_held(self.place):
                pass

    def _wait_for_others(self) -> None:
        """A run that a person started by hand has the GPU first."""
        from qlora_engine.runs import outlook  # which asks this module for the places

        while not self._is_stopping.is_set() and (busy := outlook.busy_at(self.place)) is not None:
            while _state_of(busy.entry.path)[0] in LIVE_STATES and not self._is_stopping.wait(POLL_SECONDS):
                pass

    def _settle_abandoned(self) -> None:
        """Runs of a runner that was killed: wait for one that is still at work, let the others wait again, where they stood."""
        for entry in queue.abandoned():
            place = str((entry.runner or {}).get("place"))
            if place == self.place or not ownership.is_held(_lock_file(place)):
                self._settle(entry)

    def _settle(self, entry: Entry) -> None:
        self._wait_for_engine(entry)
        state, error = _state_of(entry.run_dir)
        if state in LIVE_STATES:
            self._watch_out(entry)
        elif state in ("finished", "failed", "gone"):
            queue.finish(entry.run_dir, state, error)
        else:
            queue.give_back(entry.run_dir)

    def _wait_for_engine(self, entry: Entry) -> None:
        """An engine that has been started loads for seconds before the run is its own."""
        while entry.engine and ownership.is_alive(entry.engine) and not self._is_stopping.is_set():
            if _state_of(entry.run_dir)[0] in (*LIVE_STATES, "finished", "failed", "gone"):
                return
            self._is_stopping.wait(POLL_SECONDS)

    def _carry_out(self, entry: Entry) -> None:
        """One run to its end, whatever that is; the queue goes on."""
        state, error = _state_of(entry.run_dir)
        if state in LIVE_STATES:  # somebody started it by hand
            self._watch_out(entry)
        elif state in ("finished", "gone"):
            self._finish(entry, state, error)
        else:
            self._drive(entry)

    def _drive(self, entry: Entry) -> None:
        try:
            job = plans.start_job(RunFolder(entry.run_dir), detached=True)
        except EngineError as error:
            self._end(entry, RunFailed(error.code, error.message, error.hint))
            return
        engine = self._make_engine()
        engine.on_start = partial(queue.note_engine, entry.run_dir)
        self._engine = engine
        if self._is_stopping.is_set():
            engine.request_stop(STOP_SAVE)
        for event in engine.run(job):
            self._hear(event)
            if isinstance(event, TERMINAL):
                self._end(entry, event)
        self._engine = None

    def _watch_out(self, entry: Entry) -> None:
        engine = WatchEngine(entry.run_dir)
        self._engine = engine
        for event in engine.run():
            if isinstance(event, TERMINAL):
                self._end(entry, event)
        self._engine = None

    def _end(self, entry: Entry, event: Event) -> None:
        if isinstance(event, RunFinished):
            self._finish(entry, "finished")
        elif isinstance(event, RunFailed) and event.code in OTHERS:
            self._leave_to_others(entry)
        elif isinstance(event, RunFailed):
            self._finish(entry, "failed", f"{event.message}; {event.hint}" if event.hint else event.message)
        elif isinstance(event, RunStopped) and not self._is_stopping.is_set():
            self._finish(entry, "stopped")
        else:
            queue.give_back(entry.run_dir)

    def _leave_to_others(self, entry: Entry) -> None:
        """Another engine was quicker: what becomes of the run is its doing."""
        state, error = _state_of(entry.run_dir)
        if state in LIVE_STATES:
            self._watch_out(entry)
        else:
            self._finish(entry, state, error)

    def _finish(self, entry: Entry, state: str, error: str = "") -> None:
        queue.finish(entry.run_dir, state, error)
        self.count += 1


def places_here() -> list[str]:
    """Where runs can be carried out on this computer: each GPU, or the CPU where there is none."""
    nvml = Nvml()
    count = nvml.device_count() if nvml.start() else 0
    nvml.stop()
    return [f"gpu{index}" for index in range(count)] if isinstance(count, int) and count else [CPU]


def title(place: str) -> str:
    """`GPU 0`, or `the CPU`."""
    return "the CPU" if place == CPU else f"GPU {place.removeprefix('gpu')}"


def is_at_work(place: str) -> bool:
    """True while a runner is there, idle or not."""
    return bool(ownership.is_held(_lock_file(place)))


def ensure_running() -> list[str]:
    """Start a runner, as a process of its own, wherever something waits and none is at work; the places it was started at.

    A window calls this after it has added to the queue, and when it opens.

    Raises:
        OSError: no process can be started.
    """
    waiting = [entry for entry in queue.read().entries if entry.runner is None]
    left = [*waiting, *queue.abandoned()]
    places = [
        p for p in places_here() if not is_at_work(p) and any(queue.may_run(entry, p) for entry in left)
    ]
    for place in places[: len(left)]:
        _start(place)
    return places[: len(left)]


def claim_gpu(place: str) -> None:
    """Let everything that this process starts see the GPU of `place` alone."""
    nvml = Nvml()
    if place == CPU or not nvml.start():
        return
    count = nvml.device_count()
    if isinstance(count, int) and count > 1:
        handle = nvml.device(int(place.removeprefix("gpu")))
        uuid = None if isinstance(handle, Unavailable) else nvml.uuid(handle)
        if isinstance(uuid, str):
            os.environ["CUDA_VISIBLE_DEVICES"] = uuid
    nvml.stop()


def main() -> int:
    """The runner of a place, which is its one argument; what it starts tells its story in its run's folder."""
    place = sys.argv[-1]
    if not PLACE.fullmatch(place):
        return 2
    claim_gpu(place)
    runner = Runner(place)
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), lambda *_: threading.Thread(target=runner.stop).start())
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.suppress(EngineError):  # another was quicker
        runner.run()
    return 0


def _start(place: str) -> None:
    home = paths.home()
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOG_FILE).open("ab") as log:
        runner = subprocess.Popen(
            child.command("qlora_engine.runs.queue_runner", place),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child.environment(),
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    threading.Thread(target=runner.wait, name="queue-runner", daemon=True).start()


def _lock_file(place: str) -> Path:
    return paths.home() / f"queue-{place}.lock"


def _is_held(place: str) -> bool:
    """What waits there waits for a time of the day."""
    found = queue.read()
    return found.is_held() and found.waits_at(place)


def _state_of(run_dir: Path) -> tuple[str, str]:
    """The run's state, and what it failed of; `gone` where there is no such run any more."""
    try:
        folder = RunFolder.open(run_dir)
        record = folder.record()
        error = record.get("error") or {}
        return folder.state(record), str(error.get("message", ""))
    except EngineError as error:
        return "gone" if error.code == "run.missing" else "failed", error.message


if __name__ == "__main__":
    sys.exit(main())
