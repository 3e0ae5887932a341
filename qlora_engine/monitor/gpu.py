"""Watches every GPU in threads of its own, each kind of question at its own rate. Torch-free.

Memory at the sampling rate, sensors twice a second, process lists every 5 s (they take the driver's global lock),
PCIe once a second (it may block 20 ms per counter). `samples` never waits for the driver: it hands out the newest
answers, and a figure whose answer is overdue is None with the reason.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from qlora_engine.monitor.nvml import DeviceMemory, Handle, Nvml, ProcessMemory
from qlora_engine.monitor.nvml_words import RESTART_CODES, Unavailable

log = logging.getLogger(__name__)
SENSOR_SECONDS = 0.5
PCIE_SECONDS = 1.0
PROCESS_SECONDS = 5.0
RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 60.0
OVERDUE_SECONDS = {"memory": 2.0, "sensors": 3.0, "pcie": 5.0, "processes": 15.0}
NO_DRIVER_ANSWER = "the driver is not answering"
NOT_READ_YET = "not read yet"
OTHER_NUMBERS = "the driver numbers processes differently than this container"


@dataclass(frozen=True)
class GpuSample:
    """One reading of one GPU or MIG slice. `unavailable` names each field that is None and says why.

    `own_bytes` belong to the watched process and its children, `others_bytes` to all others the driver lists.
    `unaccounted_bytes` is the device's use minus all processes' (driver, display, managed memory), read together;
    it moved by `unaccounted_spread_bytes` while being read. `memory_source` is "host" on machines whose GPU shares
    the computer's memory.
    """

    index: int
    mig_index: int | None = None
    name: str | None = None
    uuid: str | None = None
    pci_bus_id: str | None = None
    driver_version: str | None = None
    memory_source: str | None = None
    total_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None
    own_bytes: int | None = None
    others_bytes: int | None = None
    unaccounted_bytes: int | None = None
    unaccounted_spread_bytes: int | None = None
    utilisation_ratio: float | None = None
    memory_utilisation_ratio: float | None = None
    encoder_ratio: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    ecc_uncorrected_count: int | None = None
    pcie_received_bytes_per_second: float | None = None
    pcie_sent_bytes_per_second: float | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The same as it is read back from a trace."""
        reasons = self.throttle_reasons
        return {**vars(self), "throttle_reasons": None if reasons is None else list(reasons)}


FIELDS = {
    "memory": ("memory_source", "total_bytes", "used_bytes", "free_bytes", "reserved_bytes"),
    "sensors": (
        "utilisation_ratio",
        "memory_utilisation_ratio",
        "encoder_ratio",
        "temperature_celsius",
        "power_watts",
        "power_limit_watts",
        "sm_clock_mhz",
        "memory_clock_mhz",
        "throttle_reasons",
        "ecc_uncorrected_count",
    ),
    "processes": ("own_bytes", "others_bytes", "unaccounted_bytes", "unaccounted_spread_bytes"),
    "pcie": ("pcie_received_bytes_per_second", "pcie_sent_bytes_per_second"),
}


@dataclass(frozen=True)
class Device:
    """A GPU or MIG slice of one NVML generation, with what never changes."""

    handle: Handle | Unavailable
    index: int
    mig_index: int | None
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What one kind of question brought, and when (monotonic seconds)."""

    at: float
    fields: Mapping[str, Any]


class GpuWatch:
    """The newest figures of all GPUs. `own_pids` tells which processes are the watched ones."""

    def __init__(
        self,
        hz: float,
        own_pids: Callable[[], frozenset[int]],
        host_memory: Callable[[], tuple[int, int]],
        nvml: Nvml | None = None,
    ) -> None:
        self.nvml = nvml or Nvml()
        self._own_pids, self._host_memory = own_pids, host_memory
        self._memory_seconds = 1.0 / hz
        self._devices: tuple[int, tuple[Device, ...]] = (0, ())
        self._problem: str | None = None
        self._answers: dict[tuple[int, int | None, str], Answer] = {}
        self._pcie_before: dict[tuple[int, int | None], tuple[float, int, int]] = {}
        self._most_devices = 0
        self._retry_at, self._retry_seconds = 0.0, RETRY_SECONDS
        self._started_at = time.monotonic()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.has_answered = threading.Event()

    def start(self) -> None:
        self._started_at = time.monotonic()
        jobs = (
            ("memory", self._find_devices_and_memory, self._memory_seconds),
            ("sensors", lambda: self._ask_all("sensors", self._sensors), SENSOR_SECONDS),
            ("processes", lambda: self._ask_all("processes", self._processes), PROCESS_SECONDS),
            ("pcie", lambda: self._ask_all("pcie", self._pcie), PCIE_SECONDS),
        )
        for name, job, period in jobs:
            thread = threading.Thread(
                target=self._repeat, args=(job, period), name=f"nvml-{name}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout_seconds: float) -> None:
        """End soon. A thread whose driver call hangs is left behind; it ends when the call does."""
        self._stop.set()
        until = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            self.nvml.stop()

    def samples(self) -> list[GpuSample]:
        """The newest figures; empty while the driver has named no GPU."""
        now = time.monotonic()
        return [self._composed(device, now) for device in self._devices[1]]

    def problem(self) -> str | None:
        """Why there are no GPUs to show; None when there are."""
        if self._devices[1]:
            return None
        if not self.has_answered.is_set():
            is_late = time.monotonic() - self._started_at > OVERDUE_SECONDS["memory"]
            return NO_DRIVER_ANSWER if is_late else NOT_READ_YET
        return self._problem or self.nvml.why_not

    def _repeat(self, job: Callable[[], float | None], period: float) -> None:
        if job != self._find_devices_and_memory:  # which finds whom to ask
            while not self.has_answered.wait(0.05) and not self._stop.is_set():
                pass
        due = time.monotonic()
        while not self._stop.is_set():
            try:
                wait = job()
            except Exception:
                log.exception("watching the GPU failed; going on")
                wait = LONGEST_RETRY_SECONDS
            due = next_due(due, wait or period, time.monotonic())
            self._stop.wait(due - time.monotonic())

    def _find_devices_and_memory(self) -> float | None:
        if not self.nvml.start():
            self._forget(self.nvml.why_not)
            return RETRY_SECONDS
        if self._devices[0] != self.nvml.generation and not self._find_devices():
            return RETRY_SECONDS
        self._ask_all("memory", self._memory)
        self.has_answered.set()
        self._restart_if_lost()
        return None

    def _restart_if_lost(self) -> None:
        """A lost GPU keeps its row, with the reason; NVML started anew finds it again. Each vain try doubles the wait."""
        now, devices = time.monotonic(), self._devices[1]
        self._most_devices = max(self._most_devices, len(devices))
        if len(devices) == self._most_devices and not any(self._is_lost(device) for device in devices):
            self._retry_seconds = RETRY_SECONDS
        elif now >= self._retry_at and self.nvml.restart():
            self._retry_at = now + self._retry_seconds
            self._retry_seconds = min(2 * self._retry_seconds, LONGEST_RETRY_SECONDS)

    def _is_lost(self, device: Device) -> bool:
        answer = self._answers.get((device.index, device.mig_index, "memory"))
        used = answer.fields["used_bytes"] if answer else None
        return isinstance(used, Unavailable) and used.code in RESTART_CODES

    def _find_devices(self) -> bool:
        generation = self.nvml.generation
        count = self.nvml.device_count()
        if isinstance(count, Unavailable):
            self._forget(count.reason)
            self.nvml.restart()
            return False
        known = {device.index: device.facts for device in self._devices[1] if device.mig_index is None}
        found: list[Device] = []
        for index in range(count):
            handle = self.nvml.device(index)
            is_known = isinstance(handle, Unavailable) and index in known
            found.append(Device(handle, index, None, known[index] if is_known else self._facts(handle)))
            for mig_index, part in enumerate(self._slices(handle)):
                found.append(Device(part, index, mig_index, self._facts(part)))
        if not found:
            self._forget("the driver sees no GPU")
            self.nvml.restart()
            return False
        if known != {d.index: d.facts for d in found if d.mig_index is None}:
            self._answers.clear()
        self._problem = None
        self._devices = (generation, tuple(found))
        return True

    def _slices(self, handle: Handle | Unavailable) -> Sequence[Handle]:
        return () if isinstance(handle, Unavailable) else self.nvml.mig_devices(handle)

    def _forget(self, reason: str | None) -> None:
        self._problem = reason
        self._devices = (0, ())
        self._answers.clear()
        self.has_answered.set()

    def _facts(self, handle: Handle | Unavailable) -> dict[str, Any]:
        ask = self.nvml
        return {
            "name": _ask(ask.name, handle),
            "uuid": _ask(ask.uuid, handle),
            "pci_bus_id": _ask(ask.pci_bus_id, handle),
            "driver_version": ask.driver_version(),
        }

    def _ask_all(self, kind: str, ask: Callable[[Device, Handle], Mapping[str, Any]]) -> None:
        for device in self._devices[1]:
            if self._stop.is_set():
                return
            handle = device.handle
            fields = _all(kind, handle) if isinstance(handle, Unavailable) else ask(device, handle)
            self._answers[device.index, device.mig_index, kind] = Answer(time.monotonic(), fields)

    def _memory(self, device: Device, handle: Handle) -> Mapping[str, Any]:
        found = self.nvml.memory(handle)
        if _is_shared_with_host(found):
            total, available = self._host_memory()
            found = DeviceMemory(total, total - available, available, None)
            source = "host"
        else:
            source = "device"
        if isinstance(found, Unavailable):
            return _all("memory", found)
        reserved = found.reserved_bytes
        return {
            "memory_source": source,
            "total_bytes": found.total_bytes,
            "used_bytes": found.used_bytes,
            "free_bytes": found.free_bytes,
            "reserved_bytes": Unavailable("this driver counts it as used") if reserved is None else reserved,
        }

    def _sensors(self, device: Device, handle: Handle) -> Mapping[str, Any]:
        ask = self.nvml
        rates = ask.utilisation(handle)
        gpu, memory = (
            (rates, rates) if isinstance(rates, Unavailable) else (rates.gpu_ratio, rates.memory_ratio)
        )
        return {
            "utilisation_ratio": gpu,
            "memory_utilisation_ratio": memory,
            "encoder_ratio": ask.encoder_ratio(handle),
            "temperature_celsius": ask.temperature_celsius(handle),
            "power_watts": ask.power_watts(handle),
            "power_limit_watts": ask.power_limit_watts(handle),
            "sm_clock_mhz": ask.sm_clock_mhz(handle),
            "memory_clock_mhz": ask.memory_clock_mhz(handle),
            "throttle_reasons": ask.throttle_reasons(handle),
            "ecc_uncorrected_count": ask.ecc_uncorrected(handle),
        }

    def _processes(self, device: Device, handle: Handle) -> Mapping[str, Any]:
        """Memory is read right before and after the list, so that the difference is of one moment."""
        before = self.nvml.memory(handle)
        listed = self.nvml.processes(handle)
        after = self.nvml.memory(handle)
        if isinstance(listed, Unavailable):
            return _all("processes", listed)
        if any(p.used_bytes is None for p in listed):
            return _all("processes", Unavailable("the driver does not tell memory by process here"))
        total = sum(p.used_bytes or 0 for p in listed)
        fields = self._shares(listed, total)
        if isinstance(before, Unavailable) or isinstance(after, Unavailable):
            no = before if isinstance(before, Unavailable) else after
            return fields | {"unaccounted_bytes": no, "unaccounted_spread_bytes": no}
        middle = (before.used_bytes + after.used_bytes) // 2
        spread = abs(after.used_bytes - before.used_bytes)
        return fields | {"unaccounted_bytes": middle - total, "unaccounted_spread_bytes": spread}

    def _shares(self, listed: Sequence[ProcessMemory], total: int) -> dict[str, Any]:
        """Own and others' bytes. In a container the driver may list the host's process numbers: nobody is ours then."""
        own = self._own_pids()
        mine = [p.used_bytes or 0 for p in listed if p.pid in own]
        if listed and not mine and not all(psutil.pid_exists(p.pid) for p in listed):
            return dict.fromkeys(("own_bytes", "others_bytes"), Unavailable(OTHER_NUMBERS))
        return {"own_bytes": sum(mine), "others_bytes": total - sum(mine)}

    def _pcie(self, device: Device, handle: Handle) -> Mapping[str, Any]:
        """From the byte counters where the driver has them (cheap, exact), else from its own 20 ms window."""
        key = (device.index, device.mig_index)
        counted = self.nvml.pcie_counters(handle)
        if isinstance(counted, Unavailable):
            rates = self.nvml.pcie_throughput(handle)
        else:
            now, before = time.monotonic(), self._pcie_before.get(key)
            self._pcie_before[key] = (now, *counted)
            rates = _rates(before, (now, *counted))
        if isinstance(rates, Unavailable):
            return _all("pcie", rates)
        return dict(zip(FIELDS["pcie"], rates, strict=True))

    def _composed(self, device: Device, now: float) -> GpuSample:
        values: dict[str, Any] = dict(device.facts)
        for kind, names in FIELDS.items():
            answer = self._answers.get((device.index, device.mig_index, kind))
            if answer is None:
                values |= dict.fromkeys(names, Unavailable(NOT_READ_YET))
            elif now - answer.at > OVERDUE_SECONDS[kind] + self._memory_seconds:
                values |= dict.fromkeys(names, Unavailable(NO_DRIVER_ANSWER))
            else:
                values |= answer.fields
        no = {name: v.reason for name, v in values.items() if isinstance(v, Unavailable)}
        known = {name: v for name, v in values.items() if name not in no}
        return GpuSample(index=device.index, mig_index=device.mig_index, unavailable=no, **known)


def next_due(due: float, period: float, now: float) -> float:
    """The next tick of a steady beat: ticks that were missed are skipped, the beat's phase stays."""
    due += period
    if due < now:
        due += period * ((now - due) // period + 1)
    return due


def _ask(getter: Callable[[Handle], Any], handle: Handle | Unavailable) -> Any:
    return handle if isinstance(handle, Unavailable) else getter(handle)


def _all(kind: str, no: Unavailable) -> dict[str, Any]:
    return dict.fromkeys(FIELDS[kind], no)


def _is_shared_with_host(found: DeviceMemory | Unavailable) -> bool:
    """GB10, Jetson and the like: no memory of their own to tell."""
    if isinstance(found, Unavailable):
        return found.code == 3
    return found.total_bytes == 0


def _rates(
    before: tuple[float, int, int] | None, now: tuple[float, int, int]
) -> tuple[float, float] | Unavailable:
    if before is None:
        return Unavailable(NOT_READ_YET)
    seconds = now[0] - before[0]
    received, sent = now[1] - before[1], now[2] - before[2]
    if seconds <= 0 or received < 0 or sent < 0:
        return Unavailable("the driver's byte counter started anew")
    return received / seconds, sent / seconds
