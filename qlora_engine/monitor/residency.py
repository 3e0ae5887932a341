"""Estimates how much managed optimizer memory is on the GPU and how much the driver moved to the CPU. Torch-free.

There is no exact query. NVML's device-wide use counts managed pages that are on the GPU, its per-process figures and
torch's allocator do not (nvtop #213, rmm #2259): what the device uses beyond them, minus the same difference from
before the optimizer's first step, is the managed part on the GPU. Pages are never touched to find out: that moves them.
"""

from __future__ import annotations

import platform as machine
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine.monitor.gpu import NO_DRIVER_ANSWER
from qlora_engine.monitor.questions import NOT_READ_YET
from qlora_engine.monitor.shared_memory import FIELD as SHARED_FIELD

MIB = 1024**2
GIB = 1024**3
PRESSURE_FREE_BYTES = GIB
"""The driver moves managed pages only when an allocation finds no free memory. Free memory is read at intervals, so
anything that never came nearer than this to zero is taken as "no pressure"."""
FLOOR_BYTES = 64 * MIB
"""Least uncertainty: kernels loaded late and the driver's own tables come and go by tens of MiB."""
JITTER_BYTES = 8 * MIB
"""Smaller changes of an estimate are not called movement."""
PASSING = (NOT_READ_YET, NO_DRIVER_ANSWER)
"""Reasons that may be gone in the next sample."""
NEVER_ON_WINDOWS = "on Windows the driver cannot move managed memory out of the GPU"
NEVER_UNDER_WSL = "under WSL the driver cannot move managed memory out of the GPU"
NEVER_ON_JETSON = "a Jetson's GPU uses the computer's memory: there is nowhere to move to"
TEGRA = Path("/etc/nv_tegra_release")
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
    """The device's use that nobody else accounts for, and how far its ingredients moved while being read."""

    unaccounted_bytes: int
    spread_bytes: int


class ResidencyMeter:
    """Follows the samples of one engine. The newest difference seen while nothing was managed is the baseline."""

    def __init__(self, platform: str | None = None) -> None:
        self._platform = platform or _platform()
        self._baseline: Difference | None = None
        self._least_free_bytes: int | None = None
        self._counts_managed: bool | None = None
        self._reserved_before: int | None = None
        self._shared_before = 0
        self._seen: tuple[float, int] | None = None

    def complete(self, sample: dict[str, Any]) -> None:
        """Add what can be said to the sample's "paged" block: `on_gpu_bytes`, `on_cpu_bytes`, `uncertainty_bytes`,
        `residency_kind`, `residency_reason`, `to_gpu_bytes_per_second` and `to_cpu_bytes_per_second`, unless they were
        counted (`monitor.page_moves`); and on Windows `spilled_bytes` to "torch". A block that its own engine
        completed is left as it is."""
        gpu = gpu_of_run(sample)
        self._tell_spilled(sample.get("torch"), gpu, sample.get("host") or {})
        paged = sample.get("paged")
        if paged is None or "managed_bytes" not in paged or "residency_reason" in paged:
            return
        now = self._difference(gpu, sample.get("torch"))
        found = self._located(paged, gpu, now)
        paged["on_gpu_bytes"], paged["on_cpu_bytes"] = found.on_gpu_bytes, found.on_cpu_bytes
        paged["uncertainty_bytes"] = found.uncertainty_bytes
        paged["residency_kind"], paged["residency_reason"] = found.kind, found.reason
        to_gpu, to_cpu = self._rates(found, sample.get("time") or time.time())
        paged.setdefault("to_gpu_bytes_per_second", to_gpu)
        paged.setdefault("to_cpu_bytes_per_second", to_cpu)

    def _located(
        self, paged: Mapping[str, Any], gpu: Mapping[str, Any] | None, now: Difference | None
    ) -> Residency:
        """`was_restored`: the CPU wrote the states and no step has used them yet. `was_read_by_cpu`: they were read
        since the last step (a checkpoint), which moves them too."""
        managed = int(paged["managed_bytes"])
        if managed == 0:
            self._baseline = now or self._baseline
            self._least_free_bytes = self._counts_managed = None
            return Residency(0, 0, 0, ACCOUNTED, "no optimizer state is in managed memory")
        if self._platform != "linux":
            return Residency(managed, 0, 0, ACCOUNTED, why_never_paged() or NEVER_ON_WINDOWS)
        if paged.get("was_restored"):
            self._baseline = now or self._baseline
            return Residency(
                0, managed, 0, ACCOUNTED, "the CPU restored it from the checkpoint; the next step moves it"
            )
        if gpu is None:
            return _unknown("which GPU the run uses cannot be told")
        if gpu.get("memory_source") == "host":
            return _unknown("this GPU shares the computer's memory: there is nowhere to move to")
        free = gpu.get("free_bytes")
        if free is None:
            return _unknown(_why(gpu, "free_bytes"))
        known = self._least_free_bytes
        least = self._least_free_bytes = int(free) if known is None else min(int(free), known)
        if least > PRESSURE_FREE_BYTES and not paged.get("was_read_by_cpu"):
            self._learn(managed, now)
            reason = f"the GPU always had at least {least / GIB:.2f} GiB free, so nothing had to move"
            return Residency(managed, 0, 0, ACCOUNTED, reason)
        return self._measured(managed, gpu, now)

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

    def _difference(
        self, gpu: Mapping[str, Any] | None, torch: Mapping[str, Any] | None
    ) -> Difference | None:
        """With torch's own figure, read with this sample, it holds for this moment; the driver's process list is up
        to 5 s old, and in a container it may not name us."""
        if gpu is None:
            return None
        used, reserved = gpu.get("used_bytes"), (torch or {}).get("reserved_bytes")
        listed = gpu.get("unaccounted_bytes")
        is_under_other_number = gpu.get("own_bytes") is None and listed is not None
        if used is None or reserved is None or is_under_other_number:
            return None if listed is None else Difference(listed, gpu.get("unaccounted_spread_bytes") or 0)
        if gpu.get("others_bytes") is None and _why(gpu, "others_bytes") in PASSING:
            return None  # counting others as nothing now and as something later would look like movement
        before, self._reserved_before = self._reserved_before, reserved
        spread = 0 if before is None else abs(reserved - before)
        return Difference(used - reserved - (gpu.get("others_bytes") or 0), spread)

    def _tell_spilled(self, torch: Any, gpu: Mapping[str, Any] | None, host: Mapping[str, Any]) -> None:
        """Where the driver may put a run's memory into system memory: what torch holds beyond the device's use, or what
        Windows counts as shared beyond its amount from before the GPU was full (staging memory is always shared)."""
        if self._platform == "linux" or not torch or gpu is None or gpu.get("used_bytes") is None:
            return
        spilled = (torch.get("reserved_bytes") or 0) - gpu["used_bytes"]
        shared, free = host.get(SHARED_FIELD), gpu.get("free_bytes")
        if shared is not None and free is not None:
            if free > PRESSURE_FREE_BYTES:
                self._shared_before = shared
            else:
                spilled = max(spilled, shared - self._shared_before)
        torch["spilled_bytes"] = spilled if spilled > FLOOR_BYTES else 0

    def _rates(self, found: Residency, at: float) -> tuple[float | None, float | None]:
        """(to the GPU, to the CPU) bytes per second since the sample before, from how the part on the CPU changed."""
        on_cpu, before = found.on_cpu_bytes, self._seen
        if on_cpu is None:
            self._seen = None
            return None, None
        if before is None or at <= before[0] or abs(on_cpu - before[1]) < JITTER_BYTES:
            self._seen = (at, on_cpu if before is None else before[1])
            return 0.0, 0.0
        self._seen = (at, on_cpu)
        rate = (on_cpu - before[1]) / (at - before[0])
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


def why_never_paged() -> str | None:
    """Why a paged optimizer protects nothing on this computer; None where managed memory can leave the GPU."""
    if sys.platform == "win32":
        return NEVER_ON_WINDOWS
    if _is_wsl():
        return NEVER_UNDER_WSL
    return NEVER_ON_JETSON if TEGRA.exists() else None


def _is_wsl() -> bool:
    return sys.platform == "linux" and "microsoft" in machine.release().lower()


def _platform() -> str:
    """ "win32" also inside WSL2, where the same driver does the work."""
    return "win32" if _is_wsl() else sys.platform


def _why(gpu: Mapping[str, Any], name: str) -> str:
    return str((gpu.get("unavailable") or {}).get(name, NOT_READ_YET))


def _unknown(reason: str) -> Residency:
    return Residency(None, None, None, None, reason)
