"""Ends a process of this program whose chat template is stuck in C, where nothing of Python's looks at a clock. Torch-free.

`round(-10**9)`, or two lists that hold each other sixty deep and are compared, hold Python's lock for ever: no thread runs, no
signal handler either, and Stop is never read. A timer of the operating system ends the process instead, after the
names of what it was doing were written to its log by faulthandler, which needs no lock. The timer counts processor time: a
machine that was busy or suspended is no template without an end. Windows has neither timer nor such signals.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys

SECONDS = float(os.environ.get("QLORA_STUCK_SECONDS", "10"))
"""Processor time of the whole process in one render; the template's own limit is looked at long before, wherever Python is."""
FILE = "chat template "
"""What a template's code is called in tracebacks, before its name."""
HINT = "choose another with data.chat_template"
NAMED = re.compile(rf'File "{FILE}(.+)", line \d+')

_is_armed = False


def arm() -> None:
    """From here on this process is ended by such a template. For processes whose end another one explains."""
    global _is_armed
    if hasattr(signal, "setitimer") and hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGPROF, file=sys.stderr, chain=True)
        _is_armed = True


def begin() -> None:
    """A render begins."""
    if _is_armed:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)


def over() -> None:
    """It returned."""
    if _is_armed:
        signal.setitimer(signal.ITIMER_PROF, 0)


def did_end(exit_code: int | None) -> bool:
    """Whether a process that ended so was ended by its template."""
    return hasattr(signal, "SIGPROF") and exit_code == -signal.SIGPROF


def named_in(log: str) -> str:
    """The template that a log's last words name, "of the model" where they do not."""
    found = NAMED.findall(log)
    return (
        re.sub(r"\\(?:x|u|U)([0-9a-f]{2,8})", lambda m: chr(int(m[1], 16)), found[-1])
        if found
        else "of the model"
    )
