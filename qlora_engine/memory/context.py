"""What a process takes on a GPU before it has a tensor: context, kernels, workspace. Measured once, by an empty process.

Torch-free. Kept under the program's own folder for each computer, GPU, driver and torch; where nothing was measured,
the range that GPUs and drivers are known to show stands in.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_engine import child, parsing, paths
from qlora_engine.memory import calibration
from qlora_engine.memory.gpus import same_gpu

log = logging.getLogger(__name__)
MIB = 1024**2
SCHEMA = 1
PROBE_SECONDS = 180
LATE_KERNELS_BYTES = 160 * MIB
"""What a long run may load besides what the probe used: kernels of other shapes, a second workspace."""


@dataclass(frozen=True)
class Context:
    """Bytes outside the allocator, and `source`: where the numbers are from, in words."""

    low_bytes: int
    likely_bytes: int
    high_bytes: int
    source: str


UNMEASURED = Context(**calibration.unmeasured_context())


@dataclass(frozen=True)
class Record:
    """One measurement; `bytes_` is None where it failed, and `problem` says why."""

    host: str
    gpu: str
    driver: str | None
    torch: str
    unix_time: float
    bytes_: int | None
    problem: str = ""

    @property
    def key(self) -> tuple[str, str, str | None, str]:
        """Equal keys take the same."""
        return self.host, self.gpu, self.driver, self.torch

    @property
    def words(self) -> str:
        """`measured on this machine on 2026-05-14 with driver 575.10`."""
        day = time.strftime("%Y-%m-%d", time.localtime(self.unix_time))
        return f"measured on this machine on {day} with driver {self.driver or 'n/a'}"


def context_of(gpu: str | None = None) -> Context:
    """What is known of this machine's GPU, or of one named `gpu`: from the newest measurement here, else from a report
    on that kind of card."""
    for record in reversed(records()):
        if record.bytes_ is not None and (gpu is None or same_gpu(gpu, record.gpu)):
            return _measured(record.bytes_, record.words)
    for name, card in calibration.cards().items():
        if gpu is not None and same_gpu(gpu, name):
            return _measured(card.bytes_, card.source)
    return UNMEASURED


def _measured(amount: int, source: str) -> Context:
    return Context(amount, amount, amount + LATE_KERNELS_BYTES, source)


def records() -> tuple[Record, ...]:
    """This computer's measurements, the newest last; none where the file is missing or unreadable."""
    try:
        plain = parsing.from_json(_file().read_text(encoding="utf-8"))
        found = [Record(**one) for one in plain["measured"]] if plain["schema"] == SCHEMA else []
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(record for record in found if record.host == platform.node())


def ensure(gpu: str, torch_version: str, index: int = 0, check: Callable[[], None] = lambda: None) -> Record:
    """The measurement of the GPU that torch numbers `index` and calls `gpu`; made now where there is none, which takes
    as long as importing torch. A failed one is remembered and not tried again until something changes.

    `check` is called while waiting and may raise.
    """
    wanted = (platform.node(), gpu, _driver_version(), torch_version)
    known = next((record for record in reversed(records()) if record.key == wanted), None)
    if known is not None:
        return known
    size, problem = _probed(index, check)
    made = Record(*wanted, time.time(), size, problem)
    if problem:
        log.warning("what an empty process takes on %s could not be measured: %s", gpu, problem)
    _keep(made)
    return made


def _probed(index: int, check: Callable[[], None]) -> tuple[int | None, str]:
    """Bytes as the child process measured them, or None and why not."""
    if getattr(sys, "frozen", False):
        return None, "a packaged program cannot start the empty process"
    with subprocess.Popen(
        child.command("qlora_engine.memory.context_probe", str(index)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=child.environment(),
    ) as probe:
        try:
            answer = _wait(probe, check)
        finally:
            probe.kill()
    try:
        told: dict[str, Any] = parsing.from_json(answer)
        return told["bytes"], told["problem"]
    except (ValueError, KeyError, TypeError):
        return None, f"the empty process ended with exit code {probe.returncode} and no answer"


def _wait(probe: subprocess.Popen[str], check: Callable[[], None]) -> str:
    until = time.monotonic() + PROBE_SECONDS
    while time.monotonic() < until:
        check()
        try:
            return probe.communicate(timeout=0.2)[0]
        except subprocess.TimeoutExpired:
            continue
    return json.dumps({"bytes": None, "problem": f"no answer within {PROBE_SECONDS} s"})


def _driver_version() -> str | None:
    from qlora_engine.monitor.nvml import Nvml

    nvml = Nvml()
    nvml.start()
    version = nvml.driver_version()
    nvml.stop()
    return version if isinstance(version, str) else None


def _keep(made: Record) -> None:
    """Replace the record of the same key. A folder that cannot be written only costs another measurement."""
    kept = [record for record in records() if record.key != made.key]
    plain = {"schema": SCHEMA, "measured": [asdict(record) for record in (*kept, made)]}
    aside = _file().with_suffix(f".{os.getpid()}.tmp")
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(plain, indent=1), encoding="utf-8")
        aside.replace(_file())
    except OSError as error:
        log.warning("the measured context could not be kept: %s", error)
        aside.unlink(missing_ok=True)


def _file() -> Path:
    return paths.home() / "gpu-context.json"
