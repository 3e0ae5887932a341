"""The engine in a process of its own: a job in on stdin, events out as JSON lines.

The real stdout is kept for events alone: file descriptor 1 is pointed at the log, so that a stray print, from
Python or from C, cannot corrupt the stream. The first line of stdin is the job, each later one a command.
When stdin ends the driver has vanished: the job is asked to save and end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO

from qlora_engine import events, jobs, parsing
from qlora_engine.control import STOP_SAVE, Control

NICENESS = 5
ORPHAN_SECONDS = float(os.environ.get("QLORA_ORPHAN_SECONDS", "600"))
"""How long an engine that nobody reads may take to save; a chat template that loops for ever never hears of it."""


def main() -> int:
    """Carry out one job. Exit code 0 whenever the terminal event was delivered or nobody was left to read it."""
    out = _take_stdout()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    _lower_priority()
    control = Control()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: control.request_stop(STOP_SAVE))
    line = sys.stdin.readline()
    if not line:
        return 2
    job = jobs.decode(line)
    threading.Thread(target=_listen, args=(control,), name="commands", daemon=True).start()
    for event in jobs.carry_out(job, control):
        if isinstance(event, events.RunStarted):
            _log_into(Path(event.run_dir) / "log.txt")
        _deliver(out, event, control)
    _exit_now(out)
    return 0


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


def _listen(control: Control) -> None:
    for line in sys.stdin:
        try:
            command = parsing.from_json(line)
        except ValueError:
            logging.getLogger(__name__).warning("not a command: %r", line[:80])
            continue
        control.handle(command)
    _orphaned(control)


def _orphaned(control: Control) -> None:
    """Save and end; and end anyway after `ORPHAN_SECONDS`, whatever is being computed. A timer of the operating system
    does it, since a thread of Python's waits for code that never lets go of its lock."""
    control.is_orphaned = True
    control.request_stop(STOP_SAVE)
    if hasattr(signal, "setitimer"):
        with contextlib.suppress(OSError, ValueError):
            signal.setitimer(signal.ITIMER_REAL, ORPHAN_SECONDS)
    timer = threading.Timer(ORPHAN_SECONDS, _end_orphan)
    timer.daemon = True
    timer.start()


def _end_orphan() -> None:
    logging.getLogger(__name__).error(
        "nobody reads this engine, and it did not end within %s s", ORPHAN_SECONDS
    )
    os._exit(3)


def _deliver(out: TextIO, event: events.Event, control: Control) -> None:
    try:
        out.write(events.encode(event) + "\n")
        out.flush()
    except (BrokenPipeError, ValueError, OSError):
        if not control.is_orphaned:
            _orphaned(control)


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


def _exit_now(out: TextIO) -> None:
    """End without waiting for library threads; everything worth keeping is on disk by now."""
    try:
        out.close()
    finally:
        logging.shutdown()
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
