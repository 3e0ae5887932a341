"""Keeps the computer from going to sleep by itself while a run trains; never from what a person asks for. Torch-free."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
ES_CONTINUOUS, ES_SYSTEM_REQUIRED = 0x80000000, 0x00000001
END_SECONDS = 5.0
BOOTED = Path("/run/systemd/system")
"""There where systemd runs the system (sd_booted), and can be asked."""


def why_not() -> str:
    """Why this computer cannot be kept awake, in words; empty where it can. Looks at a few files and starts nothing."""
    if sys.platform == "win32":
        return ""
    program = _command("")[0]
    if shutil.which(program) is None:
        return f"{program} is not on this computer"
    if sys.platform != "darwin" and not BOOTED.is_dir():
        return "this system does not run on systemd, which would have to be asked"
    return ""


@contextlib.contextmanager
def kept_awake(wanted: bool, why: str = "") -> Iterator[None]:
    """While inside, the computer stays awake, as far as its system lets us; it sleeps again when this process is gone,
    however that ends. Failing to is no failure of the run."""
    if not wanted:
        yield
    elif sys.platform == "win32":
        with _windows():
            yield
    else:
        with _program(_command(why)):
            yield


def _command(why: str) -> list[str]:
    """A program that holds the lock. `cat` ends with the pipe to it, and so with this process; `caffeinate` watches it."""
    if sys.platform == "darwin":
        return ["caffeinate", "-i", "-w", str(os.getpid())]
    reason = f"--why=Training run {why}".strip()
    return ["systemd-inhibit", "--what=sleep", "--who=QLoRA Studio", reason, "--mode=block", "cat"]


@contextlib.contextmanager
def _program(command: list[str]) -> Iterator[None]:
    process = _started(command)
    try:
        yield
    finally:
        if process is not None:
            _end(process)


def _started(command: list[str]) -> subprocess.Popen[bytes] | None:
    reason = why_not()
    if reason:
        log.info("the computer may go to sleep during the run: %s", reason)
        return None
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        log.info("%s could not be started: %s", command[0], error)
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _windows() -> Iterator[None]:
    """Windows keeps the wish with the thread that had it, so one of our own lives as long as the wish."""
    is_over = threading.Event()
    thread = threading.Thread(target=_hold, args=(is_over,), name="awake", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(END_SECONDS)


def _hold(is_over: threading.Event) -> None:
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 - known to type checkers on Windows alone
    kernel.SetThreadExecutionState(ES_CONTINUOUS | ES_SYSTEM_REQUIRED)
    is_over.wait()
    kernel.SetThreadExecutionState(ES_CONTINUOUS)
