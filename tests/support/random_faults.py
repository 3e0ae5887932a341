"""Disturbs a real run at a random moment, in a process forked for it, and looks at what is left.

The forked process is the engine's own (`worker.main`) with pipes for stdin and stdout. Moments are seconds of processor
time, or the number of a file operation inside the run's folder (Python's audit events, which may also refuse it).
A case ends well when the run finishes exactly as undisturbed, at once or after a resume, or when a sentence says why not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine import config_io, events, jobs, worker
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.runs import stored
from qlora_engine.runs.record import LIVE_STATES, RunFolder, is_run

PATIENCE_SECONDS = 400.0
"""By the clock, on a machine that may be busy with other things; an undisturbed run takes three seconds of a processor."""
WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.chmod")
BY_PROCESSOR_TIME = ("kill", "stop", "hangup", "terminate")
BY_FILE = ("full", "read-only", "permission", "clock ahead", "clock back", "reader leaves", "kill at a file")
BY_LIMIT = ("largest file", "memory")
KINDS = (*BY_PROCESSOR_TIME, *BY_FILE, *BY_LIMIT)
REFUSALS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "permission": errno.EACCES}
CLOCK_SECONDS = {"clock ahead": 400 * 86_400.0, "clock back": -400 * 86_400.0}
FILE_BYTES = (200, 40_000)
MEMORY_MIB = (0, 1200)


@dataclass(frozen=True)
class Case:
    """`moment` is a share of the undisturbed run, from 0 to 1; of a limit, a share of its range."""

    kind: str
    moment: float

    def __str__(self) -> str:
        return f"{self.kind} at {self.moment:.4f}"


@dataclass(frozen=True)
class Undisturbed:
    """What a run does that nobody disturbs."""

    processor_seconds: float
    file_operations: int
    adapter: bytes


@dataclass
class Ended:
    """How a forked engine ended: its events, and the wait status; whether it had been stopped."""

    seen: list[events.Event]
    status: int
    was_stopped: bool = False

    @property
    def last(self) -> events.Event | None:
        return self.seen[-1] if self.seen and isinstance(self.seen[-1], events.TERMINAL) else None


def cases(seed: str, count: int) -> list[Case]:
    """`count` of them, the kinds in turn."""
    dice = random.Random(seed)
    return [Case(KINDS[n % len(KINDS)], dice.random()) for n in range(count)]


def undisturbed(config: TrainingConfig, place: Path) -> Undisturbed:
    """Run once, measuring."""
    report = place / "measured"
    run = _named(config, place, "undisturbed")

    def prepare() -> None:
        counter = _Audit(place, None)
        original = os._exit

        def leaving(code: int) -> None:
            report.write_text(f"{time.process_time()} {counter.count}", encoding="ascii")
            original(code)

        os._exit = leaving  # type: ignore[assignment]

    ended = engine(jobs.TrainJob(config_io.to_dict(run)), prepare)
    assert isinstance(ended.last, events.RunFinished), ended
    seconds, count = report.read_text(encoding="ascii").split()
    return Undisturbed(float(seconds), int(count), _adapter(place / "undisturbed"))


def outcome(case: Case, config: TrainingConfig, place: Path, wanted: Undisturbed) -> str:
    """`finished`, `resumed`, or `sentence`.

    Raises:
        AssertionError: something was lost, hangs, is called a bug, or is not as it would have been.
    """
    run = place / "disturbed"
    named = _named(config, place, "disturbed")
    ended = engine(jobs.TrainJob(config_io.to_dict(named)), lambda: _disturb(case, place, wanted), case, run)
    _require_no_bug(ended)
    if isinstance(ended.last, events.RunFinished):
        assert _adapter(run) == wanted.adapter, "the result is another"
        return "finished"
    if not is_run(run):
        return "sentence"
    folder = RunFolder(run)
    assert folder.state() not in LIVE_STATES, f"it is called {folder.state()} and nobody runs it"
    if folder.state() == "finished":  # all was written, and only the word of it was lost
        assert _adapter(run) == wanted.adapter, "the result is another"
        return "finished"
    has_checkpoint = bool(folder.checkpoints())
    again = engine(jobs.ResumeJob(str(run)), lambda: None)
    _require_no_bug(again)
    if isinstance(again.last, events.RunFinished):
        assert _adapter(run) == wanted.adapter, "the resumed result is another"
        return "resumed"
    assert isinstance(again.last, events.RunFailed), again
    assert not has_checkpoint, f"a whole checkpoint is not gone on from: {again.last.message}"
    return "sentence"


def _require_no_bug(ended: Ended) -> None:
    last = ended.last
    if isinstance(last, events.RunFailed):
        assert last.code != "engine.bug", f"a bug: {last.message} {last.log_tail[-600:]}"
        assert last.message


def _named(config: TrainingConfig, place: Path, name: str) -> TrainingConfig:
    config = with_value(config, "output.runs_dir", str(place))
    return with_value(config, "output.name", name)


def _adapter(run: Path) -> bytes:
    assert not stored.adapter_problem(run)
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


# ---- in the forked process


class _Audit:
    """Counts file operations under `place` and calls `at` with each number. A hook stays: only in a process that ends."""

    def __init__(self, place: Path, at: Callable[[int, str, Any], None] | None) -> None:
        self.count = 0
        self._place, self._at, self._is_inside = str(place), at, False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in WATCHED or self._is_inside or not arguments:
            return
        name = arguments[0]
        if not isinstance(name, str | os.PathLike) or not os.fspath(name).startswith(self._place):  # type: ignore[arg-type]
            return
        self.count += 1
        if self._at is not None:
            self._is_inside = True
            try:
                self._at(self.count, event, arguments)
            finally:
                self._is_inside = False


def _disturb(case: Case, place: Path, wanted: Undisturbed) -> None:
    if case.kind in BY_PROCESSOR_TIME:
        _after_processor_time(case, case.moment * wanted.processor_seconds)
    elif case.kind == "largest file":
        low, high = FILE_BYTES
        size = low + int(case.moment * (high - low))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    elif case.kind == "memory":
        low, high = MEMORY_MIB
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + int((low + case.moment * (high - low)) * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    else:
        first = 1 + int(case.moment * wanted.file_operations)
        _Audit(place, lambda number, event, arguments: _refuse(case.kind, number, first, event, arguments))


def _after_processor_time(case: Case, seconds: float) -> None:
    sent = {
        "kill": signal.SIGKILL,
        "stop": signal.SIGSTOP,
        "hangup": signal.SIGHUP,
        "terminate": signal.SIGTERM,
    }
    signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), sent[case.kind]))
    if case.kind == "kill":
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # at once, in the middle of whatever library
    signal.setitimer(signal.ITIMER_PROF, max(0.001, seconds))


def _refuse(kind: str, number: int, first: int, event: str, arguments: tuple[Any, ...]) -> None:
    if number < first:
        return
    if kind in REFUSALS:
        flags = (
            arguments[2] if event == "open" and len(arguments) > 2 and isinstance(arguments[2], int) else 0
        )
        if event != "open" or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(REFUSALS[kind], os.strerror(REFUSALS[kind]), os.fspath(arguments[0]))
    elif kind in CLOCK_SECONDS and number == first:
        true = time.time
        time.time = lambda: true() + CLOCK_SECONDS[kind]
    elif kind == "kill at a file":
        # Most of a tiny run's processor time is loading; most of its files are of its steps.
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "reader leaves" and number == first:
        os.kill(os.getppid(), signal.SIGUSR1)


def _as_worker(job: jobs.Job, incoming: int, outgoing: int, prepare: Callable[[], None]) -> None:
    """Never returns."""
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(incoming, 0)
        os.dup2(outgoing, 1)
        os.dup2(silent, 2)
        os.closerange(3, 256)
        sys.stdin = os.fdopen(0, encoding="utf-8")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")
        prepare()
        worker.main()
    finally:
        os._exit(70)


# ---- beside it


def engine(
    job: jobs.Job, prepare: Callable[[], None], case: Case | None = None, run: Path | None = None
) -> Ended:
    """Fork an engine, read what it tells, and wait for its end.

    Raises:
        AssertionError: it does not end.
    """
    to_child, from_parent = os.pipe()
    from_child, to_parent = os.pipe()
    left: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: left.append(1))
    pid = os.fork()
    if pid == 0:
        os.close(from_parent)
        os.close(from_child)
        _as_worker(job, to_child, to_parent, prepare)
    os.close(to_child)
    os.close(to_parent)
    os.write(from_parent, (jobs.encode(job) + "\n").encode())
    try:
        return _watched(pid, from_child, left, run)
    finally:
        signal.signal(signal.SIGUSR1, before)
        with contextlib.suppress(OSError):
            os.close(from_parent)
        with contextlib.suppress(OSError):
            os.close(from_child)


def _watched(pid: int, pipe: int, left: Sequence[int], run: Path | None) -> Ended:
    until, ended, rest, is_open = time.monotonic() + PATIENCE_SECONDS, Ended([], -1), b"", True
    while True:
        if is_open:
            rest, is_open = _read_some(pipe, rest, ended.seen)
            if left and is_open:
                os.close(pipe)
                is_open = False
        done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if done and os.WIFSTOPPED(status):
            ended.was_stopped = True
            _look_at_stopped(run)
            os.kill(pid, signal.SIGCONT)
        elif done:
            while is_open:
                rest, is_open = _read_some(pipe, rest, ended.seen)
            ended.status = status
            return ended
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"it does not end; its last event is {ended.seen[-1:]}")
        if not is_open:
            time.sleep(0.01)


def _read_some(pipe: int, rest: bytes, seen: list[events.Event]) -> tuple[bytes, bool]:
    if not select.select([pipe], [], [], 0.05)[0]:
        return rest, True
    chunk = os.read(pipe, 1 << 16)
    *lines, rest = (rest + chunk).split(b"\n")
    for line in lines:
        with contextlib.suppress(ValueError):
            seen.append(events.decode(line.decode("utf-8")))
    return rest, bool(chunk)


def _look_at_stopped(run: Path | None) -> None:
    """A stopped process still owns its run."""
    if run is None or not run.is_dir() or not (run / stored.LOCK_FILE).exists():
        return
    folder = RunFolder(run)
    assert folder.state() not in ("crashed", "unreadable"), (
        f"a stopped engine's run is called {folder.state()}"
    )


def each(
    chosen: Sequence[Case], config: TrainingConfig, place: Path, wanted: Undisturbed
) -> Iterator[tuple[Case, str]]:
    """Every case with how it ended; a finding begins with `FINDING`."""
    for number, case in enumerate(chosen):
        where = place / f"case-{number}"
        where.mkdir()
        try:
            yield case, outcome(case, config, where, wanted)
        except Exception as error:  # noqa: BLE001 - each is a finding, and all are wanted
            yield case, f"FINDING {type(error).__name__}: {error}"[:900]
