"""Runs one job from the terminal: events to a listener, Ctrl+C once stops and saves, twice quits."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import click

from qlora_engine.cli import failures, output
from qlora_engine.client import Engine, InlineEngine, ProcessEngine
from qlora_engine.errors import EngineError
from qlora_engine.events import TERMINAL, Event, RunFailed, RunFinished, RunLeft, RunStarted, RunStopped
from qlora_engine.jobs import Job

Listener = Callable[[Event], None]


def run_job(job: Job, listener: Listener, *, on_stop: str = "Stopping") -> RunFinished | RunStopped:
    """Carry out `job` and give its good end back.

    Raises:
        EngineError: the job failed; its message and hint are the job's own.
        KeyboardInterrupt: Ctrl+C was pressed twice.
    """
    engine = make_engine()
    with interruptible(engine, on_stop), clean_stdout(engine):
        for event in engine.run(job):
            listener(event)
            if isinstance(event, TERMINAL):
                return settled(event)
    raise EngineError(
        "engine.no_end", "the engine ended without a word", "run it again", is_input_error=False
    )


def launch(job: Job, listener: Listener) -> RunFinished | RunStopped | RunLeft:
    """Begin a detached training job and leave it to itself as soon as it has its folder.

    Raises:
        EngineError: it failed before that.
    """
    engine = ProcessEngine()
    with interruptible(engine, "Stopping"):
        for event in engine.run(job):
            listener(event)
            if isinstance(event, RunStarted):
                engine.leave()
            if isinstance(event, RunLeft):
                return event
            if isinstance(event, TERMINAL):
                return settled(event)
    raise EngineError(
        "engine.no_end", "the engine ended without a word", "run it again", is_input_error=False
    )


def make_engine() -> Engine:
    """The engine that `--engine` or QLORA_ENGINE chose; a process of its own by default."""
    ctx = click.get_current_context(silent=True)
    chosen = ctx.find_root().obj if ctx else "process"
    return InlineEngine() if chosen == "inline" else ProcessEngine()


def settled(event: Event) -> RunFinished | RunStopped:
    """`event` unless it is a failure, which is raised as the sentence it carries."""
    if isinstance(event, RunFailed):
        raise failure(event)
    assert isinstance(event, RunFinished | RunStopped)
    return event


def failure(event: RunFailed) -> EngineError:
    """A failed job as an error; what the engine's log said of a bug is kept in a file that the hint names."""
    hint = event.hint
    if event.log_tail and not event.is_input_error:
        hint = f"{hint.rstrip('.')} (log: {failures.write_log(event.log_tail)})"
    return EngineError(event.code, event.message, hint, is_input_error=event.is_input_error)


@contextlib.contextmanager
def interruptible(engine: Engine, on_stop: str) -> Iterator[None]:
    """Ctrl+C and SIGTERM ask the engine to stop and save; a second one ends it at once."""
    presses = 0

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses > 1:
            kill = getattr(engine, "kill", None)
            if kill is not None:
                kill()
            raise KeyboardInterrupt
        output.note(f"\n{on_stop}. Press Ctrl+C again to quit at once.")
        # From a thread: the interrupted main thread may be holding the engine's lock.
        threading.Thread(target=engine.request_stop, daemon=True).start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    for name in (signal.SIGINT, signal.SIGTERM):
        before[int(name)] = signal.signal(name, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def clean_stdout(engine: Engine) -> Iterator[None]:
    """Libraries that print while a job runs in this process print to stderr; our own output is not affected."""
    if not isinstance(engine, InlineEngine):
        yield
        return
    real = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        output.stream = real
        try:
            yield
        finally:
            output.stream = None
