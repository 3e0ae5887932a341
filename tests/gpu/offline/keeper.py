"""Starts each part as a process of its own, takes what it tells, and ends it when its time is over. Standard library only.

A part is forked from a process that has the ML stack imported and has never touched CUDA; where something did touch
it, the fork starts Python anew. A part that aborts (bitsandbytes ends its process on a CUDA error) takes no other with it. Between
the two stands a guard that does nothing but wait: when the keeper vanishes, it ends the part and all the part has started.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.gpu.offline.parts import PLANS
from tests.gpu.offline.report import CUT_OFF, DONE, FAILED, RUNNING, Report
from tests.gpu.offline.rig import Rig

GRACE_SECONDS = 3.0
LOOK_SECONDS = 0.02
TAIL_BYTES = 1500


def carry_out(report: Report, number: int, rig: Rig, *, starts_anew: bool) -> None:
    """Run part `number` to its end, its crash or its time; the report on disk follows line by line."""
    part, began = report.part(number), time.monotonic()
    part.state = RUNNING
    report.write()
    log = rig.work / f"part-{number}.log"
    reader, writer = os.pipe()
    alive, life = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(life)
        _guard(
            alive, lambda: _be_part(number, Rig(rig.device, rig.work, rig.until, writer), log, starts_anew)
        )
    os.close(writer)
    os.close(alive)
    try:
        is_over = _listen(reader, rig.until + GRACE_SECONDS, lambda message: report.take(number, message))
    finally:
        code = _end(child)
        os.close(reader)
        os.close(life)
    part.seconds = round(time.monotonic() - began, 1)
    part.state, part.why = _judged(is_over, code, log)
    report.write()


def run_here(number: int, rig: Rig) -> int:
    """The part itself, in this process. The exit code: 0, or 1 after a traceback on stderr."""
    try:
        importlib.import_module(f"tests.gpu.offline.{PLANS[number].module}").run(rig)
    except BaseException:  # noqa: BLE001 - whatever it is, it is the part's end and its log says it
        traceback.print_exc()
        return 1
    return 0


def _guard(alive: int, work: Callable[[], None]) -> None:
    """Never returns: ends as `work` did, in a process of its own. `alive` is at its end when the keeper is gone, killed
    at whatever moment; then everything in this process group is."""
    os.setsid()
    child = os.fork()
    if child == 0:
        work()
    while not select.select([alive], [], [], LOOK_SECONDS)[0]:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            _end_as(os.waitstatus_to_exitcode(status))
    os.killpg(0, signal.SIGKILL)


def _end_as(code: int) -> None:
    """End this process with the exit code of another, or by the signal that ended that."""
    if code < 0:
        with contextlib.suppress(OSError):  # some signals keep their default
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _be_part(number: int, rig: Rig, log: Path, starts_anew: bool) -> None:
    """Never returns. In the group of its guard, so that its own children end with it."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if starts_anew or _cuda_was_touched():
        os.set_inheritable(rig.pipe, True)
        script = str(Path(__file__).resolve().parents[1] / "run_offline.py")
        left = str(rig.until - time.monotonic())
        os.execv(sys.executable, [sys.executable, script, "--part", str(number), rig.device, str(rig.work), left, str(rig.pipe)])  # fmt: skip
    code = run_here(number, rig)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _cuda_was_touched() -> bool:
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    return bool(torch.cuda.is_initialized()) or bool(getattr(torch._C, "_cuda_isInBadFork", bool)())


def _listen(reader: int, until: float, take: Callable[[Mapping[str, Any]], None]) -> bool:
    """Hand over each line of JSON that comes; True when the other side has closed, False when the time is over."""
    rest = b""
    while (left := until - time.monotonic()) > 0:
        if not select.select([reader], [], [], left)[0]:
            return False
        data = os.read(reader, 65536)
        if not data:
            return True
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            take(json.loads(line))
    return False


def _end(child: int) -> int:
    """Wait for it a moment, then end it and all it started; its exit code, negative for a signal."""
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            _end_group(child)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    _end_group(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _end_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _judged(is_over: bool, code: int, log: Path) -> tuple[str, str]:
    if not is_over:
        return CUT_OFF, "its time was over; what it had found stands below"
    if code == 0:
        return DONE, ""
    tail = log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace").strip()
    return FAILED, f"ended with exit code {code}: {tail}"
