"""Driving an engine: in a process of its own (default) or inside the calling thread.

Both yield the same events for the same job and end with exactly one terminal event. Torch-free.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from qlora_engine import events, jobs, launch
from qlora_engine.control import STOP_DISCARD, STOP_SAVE, Control
from qlora_engine.data import last_resort
from qlora_engine.events import TERMINAL, Event, RunFailed, RunLeft, RunStarted
from qlora_engine.launch import Launched
from qlora_engine.spare import Spare

DISCARD_GRACE_SECONDS = 15.0
KILL_GRACE_SECONDS = 5.0
EXIT_GRACE_SECONDS = 20.0
LOG_TAIL_BYTES = 8_000
LEAVE = {"command": "leave"}
"""What the worker is told by a driver that goes while the job goes on."""


class Engine(Protocol):
    """What carries out jobs. `run` may be called once; the other methods are safe from any thread."""

    def run(self, job: jobs.Job) -> Iterator[Event]:
        """Carry out `job`; the last event, and only the last, is terminal."""
        ...

    def send(self, command: Mapping[str, Any]) -> None:
        """Pass a command on: {"command": "pause" | "continue" | "save" | "evaluate" | "sample" | ...}."""
        ...

    def request_stop(self, mode: str = STOP_SAVE) -> None:
        """Ask the job to end soon, with (`save`) or without (`discard`) a checkpoint."""
        ...


class InlineEngine:
    """Runs the job in the calling thread, in this process."""

    def __init__(self) -> None:
        self.control = Control()

    def run(self, job: jobs.Job) -> Iterator[Event]:
        return jobs.carry_out(job, self.control)

    def send(self, command: Mapping[str, Any]) -> None:
        self.control.handle(command)

    def request_stop(self, mode: str = STOP_SAVE) -> None:
        self.control.request_stop(mode)


class ProcessEngine:
    """Runs the job in a child process, so that neither its imports nor its death touch the caller."""

    def __init__(self, spare: Spare | None = None) -> None:
        self.on_start: Callable[[int], None] | None = None
        """Called with the number of the process as soon as there is one, long before its first event."""
        self._spare = spare
        self._process: subprocess.Popen[str] | None = None
        self._write_lock = threading.Lock()
        self._waiting: list[Mapping[str, Any]] = []
        self._run_dir: Path | None = None
        self._is_left = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def run(self, job: jobs.Job) -> Iterator[Event]:
        worker = self._start(job)
        process, has_ended = worker.process, False
        try:
            try:
                for event in self._events(process):
                    has_ended = isinstance(event, TERMINAL)
                    yield event
                    if has_ended:
                        break
            except GeneratorExit:
                self._is_left = self._is_left or (getattr(job, "detached", False) and not has_ended)
                raise
            finally:
                self._reap(process, is_over=has_ended)
            if self._is_left and not has_ended:
                yield RunLeft(str(self._run_dir or ""))
            elif not has_ended:
                run_log = self._run_dir / "log.txt" if self._run_dir else None
                yield died(process.returncode, _tail(run_log) or _tail(worker.log))
        finally:
            worker.clean_up()

    def send(self, command: Mapping[str, Any]) -> None:
        with self._write_lock:
            if self._process is None:
                self._waiting.append(command)
            else:
                self._write(json.dumps(command))

    def request_stop(self, mode: str = STOP_SAVE) -> None:
        self.send({"command": "stop", "mode": mode})
        if mode == STOP_DISCARD:
            threading.Thread(target=self._escalate, name="stop-escalation", daemon=True).start()

    def leave(self) -> None:
        """Read no more, and let the job go on by itself: `run` ends with RunLeft. A run is found again by its folder."""
        self._is_left = True
        self.send(LEAVE)

    def kill(self) -> None:
        """End the engine at once; what was not in a checkpoint is lost."""
        if self._process is not None:
            self._process.kill()

    def _start(self, job: jobs.Job) -> Launched:
        """A worker with its job: one that waits with everything imported, where there is one and the job needs that."""
        worker = (self._spare.take(job) if self._spare is not None else None) or launch.launch()
        with self._write_lock:
            self._process = worker.process
            self._write(jobs.encode(job))
            for command in self._waiting:
                self._write(json.dumps(command))
            self._waiting.clear()
        if self.on_start is not None:
            self.on_start(worker.process.pid)
        return worker

    def _write(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError, OSError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _events(self, process: subprocess.Popen[str]) -> Iterator[Event]:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                event = events.decode(line)
            except ValueError:
                continue  # half a line from a dying process; its death is reported by `run`
            if isinstance(event, RunStarted):
                self._run_dir = Path(event.run_dir)
            yield event

    def _reap(self, process: subprocess.Popen[str], *, is_over: bool) -> None:
        """Wait for the child and close the pipes; a child whose events nobody reads any more saves and ends, and one that
        was left is not waited for."""
        with self._write_lock, contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            if self._is_left:  # it is buried when it ends, if this process is still there
                threading.Thread(target=process.wait, name="left-engine", daemon=True).start()
            else:
                process.wait(EXIT_GRACE_SECONDS if is_over else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _escalate(self) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(DISCARD_GRACE_SECONDS)
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_GRACE_SECONDS)
            return
        process.kill()


def died(exit_code: int | None, log_tail: str) -> RunFailed:
    """What to say of an engine that vanished without a word (CORRECTNESS 29 and 38)."""
    lowered = log_tail.lower()
    if exit_code == 1 and "cuda" in lowered and ("error" in lowered) and "traceback" not in lowered:
        is_memory = "out of memory" in lowered or "error 2 " in lowered
        return RunFailed(
            "engine.cuda",
            "bitsandbytes met a CUDA error and ended the engine"
            + (": the GPU is out of memory" if is_memory else ""),
            "resume from the last checkpoint"
            + (" with a smaller micro-batch" if is_memory else "; if it happens again, run `qlora doctor`"),
            exit_code,
            log_tail,
        )
    if last_resort.did_end(exit_code):
        message = f"the chat template {last_resort.named_in(log_tail)} runs without an end"
        return RunFailed("data.template", message, last_resort.HINT, exit_code, log_tail)
    if exit_code is not None and exit_code < 0:
        name = _signal_name(-exit_code)
        is_memory = name == "SIGKILL"
        cause = "the system may have run out of memory" if is_memory else "a library crashed, which is a bug"
        hint = f"{cause}; resume from the last checkpoint"
        return RunFailed(
            "engine.killed", f"The engine was ended by the system ({name})", hint, exit_code, log_tail
        )
    return RunFailed(
        "engine.died",
        f"The engine ended unexpectedly with exit code {exit_code}",
        "resume from the last checkpoint; the end of the log is kept with the run",
        exit_code,
        log_tail,
    )


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(path: Path | None) -> str:
    if path is None or not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace").strip()
