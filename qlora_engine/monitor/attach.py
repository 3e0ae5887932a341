"""Watching from outside: a stream of samples for the command line, and another run's engine by its process id.

Torch-free. The engine's own figures (paged, allocator, parts) come from the trace that it writes into its run folder.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from qlora_engine.errors import EngineError
from qlora_engine.monitor import trace
from qlora_engine.monitor.gpu import next_due
from qlora_engine.monitor.nvml import Nvml
from qlora_engine.monitor.sampler import Sample, Sampler
from qlora_engine.runs.record import LIVE_STATES, RunFolder
from qlora_engine.runs.summary import list_runs

FRESH_SECONDS = 5.0


def stream(
    seconds: float | None = None, hz: float = 4.0, pid: int | None = None, *, nvml: Nvml | None = None
) -> Generator[Sample, None, None]:
    """Samples at `hz` for `seconds` (None: until closed); with `pid` of that process's tree, until it ends.

    Raises:
        EngineError: `hz` or `seconds` make no sense, or there is no such process.
    """
    _check(seconds, hz)
    sampler = watching(pid, hz, nvml) if pid is not None else Sampler(hz, nvml=nvml)
    return _samples(sampler, seconds, hz, pid is not None)


def watching(pid: int, hz: float, nvml: Nvml | None = None) -> Sampler:
    """A sampler of another process; if it is a run's engine, with what the engine itself wrote down last.

    Raises:
        EngineError: there is no such process.
    """
    run = run_of_pid(pid)
    told = EngineTrace(run.memory_path) if run is not None else None
    sampler = Sampler(
        hz,
        pid=pid,
        nvml=nvml,
        paged_source=None if told is None else lambda: told.block("paged"),
        torch_source=None if told is None else lambda: told.block("torch"),
        parts_source=None if told is None else lambda: told.block("parts"),
    )
    if not sampler.is_watching():
        raise EngineError(
            "monitor.no_process", f"there is no process {pid}", "see running runs with `qlora runs`"
        )
    return sampler


def run_of_pid(pid: int, runs_dir: Path | None = None) -> RunFolder | None:
    """The run whose engine is process `pid`; None when it is no engine of a run in that folder."""
    for summary in list_runs(runs_dir):
        if summary.state not in LIVE_STATES:
            continue
        folder = RunFolder(summary.path)
        if folder.record().get("pid") == pid:
            return folder
    return None


class EngineTrace:
    """The newest sample of a trace that another process writes, read at most once for each look at it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] = (-1, -1)
        self._sample: Mapping[str, Any] | None = None

    def block(self, name: str) -> Mapping[str, Any] | None:
        """One block of the newest sample; None when it is older than FRESH_SECONDS or not told."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        if (stat.st_size, stat.st_mtime_ns) != self._seen:
            self._seen = (stat.st_size, stat.st_mtime_ns)
            self._sample = trace.newest(self._path)
        if self._sample is None or time.time() - self._sample["time"] > FRESH_SECONDS:
            return None
        found = self._sample.get(name)
        return found if isinstance(found, Mapping) else None


def _check(seconds: float | None, hz: float) -> None:
    if not 0 < hz <= 100:
        raise EngineError(
            "monitor.hz", f"the rate must be more than 0 and at most 100 Hz, not {hz:g}", "try 4"
        )
    if seconds is not None and not 0 < seconds < float("inf"):
        raise EngineError(
            "monitor.seconds", f"the time must be more than 0 seconds, not {seconds:g}", "try 10"
        )


def _samples(
    sampler: Sampler, seconds: float | None, hz: float, ends_with_process: bool
) -> Generator[Sample, None, None]:
    """The consumer's own beat: a slow reader skips ticks instead of getting old samples."""
    sampler.start(own_beat=False)
    try:
        sampler.wait_for_driver()
        begun = due = time.monotonic()
        while True:
            yield sampler.sample()
            if ends_with_process and not sampler.is_watching():
                return
            due = next_due(due, 1.0 / hz, time.monotonic())
            if seconds is not None and due - begun >= seconds - 1e-6:
                return
            time.sleep(max(0.0, due - time.monotonic()))
    finally:
        sampler.stop()
