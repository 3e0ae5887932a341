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

from qlora_engine.monitor.nvml import Handle, Nvml
from qlora_engine.monitor.nvml_words import RESTART_CODES, Unavailable
from qlora_engine.monitor.questions import FIELDS, NOT_READ_YET, Device, Questions, all_of

log = logging.getLogger(__name__)
SENSOR_SECONDS = 0.5
PCIE_SECONDS = 1.0
PROCESS_SECONDS = 5.0
RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 60.0
OVERDUE_SECONDS = {"memory": 2.0, "sensors": 3.0, "pcie": 5.0, "processes": 15.0}
NO_DRIVER_ANSWER = "the driver is not answering"


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
        self._ask = Questions(self.nvml, own_pids, host_memory)
        self._memory_seconds = 1.0 / hz
        self._devices: tuple[int, tuple[Device, ...]] = (0, ())
        self._problem: str | None = None
        self._answers: dict[tuple[int, int | None, str], Answer] = {}
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
            ("sensors", lambda: self._ask_all("sensors", self._ask.sensors), SENSOR_SECONDS),
            ("processes", lambda: self._ask_all("processes", self._ask.processes), PROCESS_SECONDS),
            ("pcie", lambda: self._ask_all("pcie", self._ask.pcie), PCIE_SECONDS),
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
        self._ask_all("memory", self._ask.memory)
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
            found.append(Device(handle, index, None, known[index] if is_known else self._ask.facts(handle)))
            for mig_index, part in enumerate(self._slices(handle)):
                found.append(Device(part, index, mig_index, self._ask.facts(part)))
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

    def _ask_all(self, kind: str, ask: Callable[[Device, Handle], Mapping[str, Any]]) -> None:
        for device in self._devices[1]:
            if self._stop.is_set():
                return
            handle = device.handle
            fields = all_of(kind, handle) if isinstance(handle, Unavailable) else ask(device, handle)
            self._answers[device.index, device.mig_index, kind] = Answer(time.monotonic(), fields)

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
