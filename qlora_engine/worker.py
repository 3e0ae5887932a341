"""The engine in a process of its own: a job in on stdin, events out as JSON lines.

The real stdout is kept for events alone: file descriptor 1 is pointed at the log, so that a stray print, from
Python or from C, cannot corrupt the stream. The first line of stdin is the job, each later one a command.
When stdin ends the driver has vanished: the job is asked to save and end, unless it is detached. A detached job goes on
without anyone: what it tells is in its run's folder, and commands come from there (runs.commands).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import TextIO

from qlora_engine import compiler_later, events, jobs, orphans, parsing, prepared, scanned_once, thread_starts
from qlora_engine.client import LEAVE
from qlora_engine.control import STOP_SAVE, Control
from qlora_engine.data import last_resort
from qlora_engine.spare import PREPARE

NICENESS = 5


def main() -> int:
    """Carry out one job. Exit code 0 whenever the terminal event was delivered or nobody was left to read it."""
    out = _take_stdout()
    compiler_later.install()
    scanned_once.install()
    thread_starts.bound()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # PEFT 0.21 reads a property that transformers 5.23 renamed: nothing that a reader of the run's log can do about.
    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
    _lower_priority()
    last_resort.arm()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = sys.stdin.readline()
    if line == f"{json.dumps(PREPARE)}\n":
        prepared.import_all()
        line = sys.stdin.readline()
    if not line:
        return 2
    control = Control()
    reader = Reader(out, control)
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: _signalled(number, reader, control))
    job = jobs.decode(line)
    if getattr(job, "detached", False):
        reader.detach()
    else:
        reader.watched_by(orphans.Watcher())
    threading.Thread(target=_listen, args=(control, reader), name="commands", daemon=True).start()
    for event in jobs.carry_out(job, control):
        if isinstance(event, events.RunStarted):
            _log_into(Path(event.run_dir) / "log.txt")
        reader.deliver(event)
    reader.close()
    _exit_now()
    return 0


class Reader:
    """Whoever reads the events. The job of a reader that vanishes saves and ends, or goes on where it is detached."""

    def __init__(self, out: TextIO, control: Control) -> None:
        self._out: TextIO | None = out
        self._control = control
        self._lock = threading.Lock()
        self._watcher: orphans.Watcher | None = None
        self.is_detached = False

    def watched_by(self, watcher: orphans.Watcher) -> None:
        self._watcher = watcher

    def deliver(self, event: events.Event) -> None:
        with self._lock:
            if self._out is None:
                return
            try:
                self._out.write(events.encode(event) + "\n")
                self._out.flush()
                return
            except (BrokenPipeError, ValueError, OSError):
                self._out = None if self.is_detached else self._out
        self.vanished()

    def detach(self) -> None:
        """From here on the job needs no reader. A closed terminal takes its session's processes with it: this one leaves
        that session."""
        self.is_detached = True
        if self._watcher is not None:
            self._watcher.end()
        if hasattr(os, "setsid"):
            with contextlib.suppress(OSError):
                os.setsid()

    def vanished(self) -> None:
        """Save and end; the watcher ends an engine that takes too long over it."""
        if not self.is_detached and not self._control.is_orphaned:
            self._control.is_orphaned = True
            self._control.request_stop(STOP_SAVE)
            if self._watcher is not None:
                self._watcher.noticed()

    def close(self) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._out is not None:
                out, self._out = self._out, None
                out.close()


def _signalled(number: int, reader: Reader, control: Control) -> None:
    """Save and end; a detached job does not mind that a terminal was closed."""
    if not (reader.is_detached and number == getattr(signal, "SIGHUP", None)):
        control.request_stop(STOP_SAVE)


def _take_stdout() -> TextIO:
    """The real stdout as a private stream; descriptor 1 goes where stderr goes."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "w", encoding="utf-8", newline="\n", buffering=1)


def _log_into(file: Path) -> None:
    """From here on everything printed, by Python, libraries or C, is kept with the run, whoever else may die."""
    try:
        log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:
        logging.getLogger(__name__).warning("%s cannot be written", file)
        return
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _listen(control: Control, reader: Reader) -> None:
    for line in sys.stdin:
        try:
            command = parsing.from_json(line)
        except ValueError:
            logging.getLogger(__name__).warning("not a command: %r", line[:80])
            continue
        if command == LEAVE:
            reader.detach()
            reader.close()
        else:
            control.handle(command)
    reader.vanished()


def _lower_priority() -> None:
    """Give the window the right of way on a busy machine."""
    try:
        if sys.platform == "win32":
            import psutil

            psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        else:
            os.nice(NICENESS)
    except OSError:
        logging.getLogger(__name__).info("the engine's priority could not be lowered")


def _exit_now() -> None:
    """End without waiting for library threads; everything worth keeping is on disk by now."""
    try:
        logging.shutdown()
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
