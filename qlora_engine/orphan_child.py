"""A process beside an engine that ends it when its driver has gone and it does not end by itself. Torch-free.

Code in C that holds Python's lock (a regular expression that tries for ever, two lists that are compared for ever) lets no
thread and no signal handler of the engine run: nobody in there can notice anything. This process needs nothing of the
engine: it looks whether both processes are there, and reads from its stdin that the engine noticed. It ends with the engine.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import psutil

ORPHAN_SECONDS = float(os.environ.get("QLORA_ORPHAN_SECONDS", "600"))
"""How long an engine that nobody reads may take to save."""
DEAF_SECONDS = float(os.environ.get("QLORA_DEAF_SECONDS", "10"))
"""How much processor time it may use up before it has noticed. Time on the clock would be wrong: a busy machine or a
SIGSTOP takes that from an engine which is about to save."""
TICK_SECONDS = 1.0


def main(driver: str = "", engine: str = "") -> int:
    """Watch until the engine has ended. Exit code 2 for wrong arguments."""
    if not (driver.isdigit() and engine.isdigit()):
        return 2
    has_noticed = threading.Event()
    threading.Thread(target=_listen, args=(has_noticed,), name="engine", daemon=True).start()
    try:
        watched = psutil.Process(int(engine))
        _wait_for_orphan(_found(int(driver)), watched, has_noticed)
        _see_it_end(watched, has_noticed)
    except psutil.NoSuchProcess:
        return 0
    return 0


def _listen(has_noticed: threading.Event) -> None:
    """The engine writes a line when it has noticed; its end of the pipe closes when it ends or needs no watching."""
    for _ in sys.stdin:
        has_noticed.set()
    os._exit(0)


def _found(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _wait_for_orphan(driver: psutil.Process | None, engine: psutil.Process, noticed: threading.Event) -> None:
    while driver is not None and driver.is_running() and not _is_dead(driver):
        if noticed.wait(TICK_SECONDS):
            return
        engine.status()  # raises once it has gone


def _is_dead(process: psutil.Process) -> bool:
    """Ended, and not buried yet by whoever started it."""
    return bool(process.status() == psutil.STATUS_ZOMBIE)


def _see_it_end(engine: psutil.Process, noticed: threading.Event) -> None:
    """Kill it when it has used up its time. What is stopped meanwhile uses up none."""
    used, waited = _processor_seconds(engine), 0.0
    while waited < ORPHAN_SECONDS:
        if not noticed.is_set() and _processor_seconds(engine) - used > DEAF_SECONDS:
            break
        time.sleep(TICK_SECONDS)
        waited += TICK_SECONDS if engine.status() != psutil.STATUS_STOPPED else 0.0
    engine.kill()


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
