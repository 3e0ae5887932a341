"""Estimates how much managed optimizer memory is on the GPU and how much the driver moved to the CPU. Torch-free.

There is no exact query. NVML's device-wide use counts managed pages that are on the GPU, its per-process figures do
not (nvtop #213, rmm #2259): what the device uses beyond all processes, minus the same difference from before the
optimizer's first step, is the managed part on the GPU. Pages are never touched to find out: that would move them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIB = 1024**2
GIB = 1024**3
PRESSURE_FREE_BYTES = GIB
"""The driver moves managed pages only when an allocation finds no free memory. Free memory is read at intervals, so
anything that never came nearer than this to zero is taken as "no pressure"."""
FLOOR_BYTES = 32 * MIB
"""Least uncertainty: other processes' contexts and the driver's own tables come and go by tens of MiB."""
ACCOUNTED, ESTIMATED = "accounted", "estimated"


@dataclass(frozen=True)
class Residency:
    """Where managed bytes are. `kind` is accounted or estimated; `reason` says how it is known or why it is not."""

    on_gpu_bytes: int | None
    on_cpu_bytes: int | None
    uncertainty_bytes: int | None
    kind: str | None
    reason: str


@dataclass(frozen=True)
class Difference:
    """The device's use that no process accounts for, and how far it moved while being read."""

    unaccounted_bytes: int
    spread_bytes: int


class ResidencyMeter:
    """Follows one process's samples. The newest difference seen while nothing was managed is the baseline."""

    def __init__(self, platform: str = sys.platform) -> None:
        self._platform = platform
        self._baseline: Difference | None = None
        self._least_free_bytes: int | None = None
        self._counts_managed: bool | None = None
        self._moved: tuple[float, int] | None = None

    def complete(self, sample: dict[str, Any]) -> None:
        """Add what can be said to the sample's "paged" block: `on_gpu_bytes`, `on_cpu_bytes`, `uncertainty_bytes`,
        `residency_kind`, `residency_reason`, `to_gpu_bytes_per_second` and `to_cpu_bytes_per_second`."""
        paged = sample.get("paged")
        if paged is None or "managed_bytes" not in paged:
            return
        gpu = gpu_of_run(sample)
        found = self.update(int(paged["managed_bytes"]), gpu, bool(paged.get("was_read_by_cpu")))
        paged["on_gpu_bytes"], paged["on_cpu_bytes"] = found.on_gpu_bytes, found.on_cpu_bytes
        paged["uncertainty_bytes"] = found.uncertainty_bytes
        paged["residency_kind"], paged["residency_reason"] = found.kind, found.reason
        to_gpu, to_cpu = self._rates(found, sample.get("time") or time.time())
        paged.setdefault("to_gpu_bytes_per_second", to_gpu)
        paged.setdefault("to_cpu_bytes_per_second", to_cpu)

    def update(
        self, managed_bytes: int, gpu: Mapping[str, Any] | None, was_read_by_cpu: bool = False
    ) -> Residency:
        """One reading. `was_read_by_cpu`: the states were read since the last step (a checkpoint), which moves them."""
        now = _difference(gpu)
        if managed_bytes == 0:
            self._baseline = now or self._baseline
            self._least_free_bytes = self._counts_managed = None
            return Residency(0, 0, 0, ACCOUNTED, "no optimizer state is in managed memory")
        settled = self._known_without_measuring(managed_bytes, gpu)
        if settled is not None:
            return settled
        assert gpu is not None  # _known_without_measuring has answered for no GPU
        free = min(int(gpu["free_bytes"]), self._least_free_bytes or int(gpu["free_bytes"]))
        self._least_free_bytes = free
        if free > PRESSURE_FREE_BYTES and not was_read_by_cpu:
            self._learn(managed_bytes, now)
            reason = f"the GPU always had at least {free / GIB:.1f} GiB free, so nothing had to move"
            return Residency(managed_bytes, 0, 0, ACCOUNTED, reason)
        return self._measured(managed_bytes, gpu, now)

    def _known_without_measuring(self, managed: int, gpu: Mapping[str, Any] | None) -> Residency | None:
        if self._platform == "win32":
            return Residency(managed, 0, 0, ACCOUNTED, "on Windows the driver cannot page managed memory out")
        if gpu is None:
            return _unknown("which GPU the run uses cannot be told")
        if gpu.get("memory_source") == "host":
            return _unknown("this GPU shares the computer's memory: there is nowhere to move to")
        if gpu.get("free_bytes") is None:
            return _unknown(_why(gpu, "free_bytes"))
        return None

    def _learn(self, managed: int, now: Difference | None) -> None:
        """Without pressure all of it is on the GPU: the moment to see whether this driver counts it."""
        if now is None or self._baseline is None or managed < 4 * (now.spread_bytes + FLOOR_BYTES):
            return
        excess = now.unaccounted_bytes - self._baseline.unaccounted_bytes
        self._counts_managed = excess >= managed // 2

    def _measured(self, managed: int, gpu: Mapping[str, Any], now: Difference | None) -> Residency:
        if now is None:
            return _unknown(_why(gpu, "unaccounted_bytes"))
        if self._baseline is None:
            return _unknown("there is no reading from before the optimizer's first step to compare with")
        if self._counts_managed is False:
            return _unknown("this driver does not count managed memory as used")
        excess = now.unaccounted_bytes - self._baseline.unaccounted_bytes
        on_gpu = min(max(excess, 0), managed)
        uncertainty = now.spread_bytes + self._baseline.spread_bytes + FLOOR_BYTES
        reason = "what the device uses beyond its processes, against before the optimizer's first step"
        return Residency(on_gpu, managed - on_gpu, min(uncertainty, managed), ESTIMATED, reason)

    def _rates(self, found: Residency, at: float) -> tuple[float | None, float | None]:
        """(to the GPU, to the CPU) bytes per second, from how the part on the CPU changed."""
        if found.on_cpu_bytes is None:
            self._moved = None
            return None, None
        before = self._moved
        if before is None or found.on_cpu_bytes != before[1] or at < before[0]:
            self._moved = (at, found.on_cpu_bytes)
        if before is None or at <= before[0]:
            return 0.0, 0.0
        rate = (found.on_cpu_bytes - before[1]) / (at - before[0])
        return max(-rate, 0.0), max(rate, 0.0)


def gpu_of_run(sample: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The GPU a run uses: the one torch names by UUID, else the only one with memory of the watched process, else
    the only one. CUDA's order is not NVML's, so an index is never trusted."""
    gpus = list(sample.get("gpus") or ())
    uuid = (sample.get("torch") or {}).get("gpu_uuid")
    if uuid:
        return next((gpu for gpu in gpus if same_uuid(gpu.get("uuid"), uuid)), None)
    own = [gpu for gpu in gpus if gpu.get("own_bytes")]
    candidates = own or gpus
    return candidates[0] if len(candidates) == 1 else None


def same_uuid(one: str | None, other: str | None) -> bool:
    """NVML writes `GPU-<uuid>` or `MIG-<uuid>`, torch the bare uuid."""
    if not one or not other:
        return False
    bare = [text.lower().removeprefix("gpu-").removeprefix("mig-") for text in (one, other)]
    return bare[0] == bare[1]


def _difference(gpu: Mapping[str, Any] | None) -> Difference | None:
    if gpu is None or gpu.get("unaccounted_bytes") is None:
        return None
    return Difference(int(gpu["unaccounted_bytes"]), int(gpu.get("unaccounted_spread_bytes") or 0))


def _why(gpu: Mapping[str, Any], name: str) -> str:
    return str((gpu.get("unavailable") or {}).get(name, "not read yet"))


def _unknown(reason: str) -> Residency:
    return Residency(None, None, None, None, reason)
