"""What is asked of a GPU, kind by kind, and the fields that each answer fills. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from qlora_engine.monitor.nvml import DeviceMemory, Handle, Nvml, ProcessMemory
from qlora_engine.monitor.nvml_words import Unavailable

NOT_READ_YET = "not read yet"
OTHER_NUMBERS = "the driver numbers processes differently than this container"
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


class Questions:
    """Asks the driver. Each answer is complete: what is unknown is `Unavailable` with the reason."""

    def __init__(
        self, nvml: Nvml, own_pids: Callable[[], frozenset[int]], host_memory: Callable[[], tuple[int, int]]
    ) -> None:
        self._nvml, self._own_pids, self._host_memory = nvml, own_pids, host_memory
        self._before: dict[tuple[int, int | None], tuple[float, int, int]] = {}
        """The counters of PCIe as they were read last."""

    def facts(self, handle: Handle | Unavailable) -> dict[str, Any]:
        ask = self._nvml
        return {
            "name": _ask(ask.name, handle),
            "uuid": _ask(ask.uuid, handle),
            "pci_bus_id": _ask(ask.pci_bus_id, handle),
            "driver_version": ask.driver_version(),
        }

    def memory(self, device: Device, handle: Handle) -> Mapping[str, Any]:
        found = self._nvml.memory(handle)
        if _is_shared_with_host(found):
            total, available = self._host_memory()
            found = DeviceMemory(total, total - available, available, None)
            source = "host"
        else:
            source = "device"
        if isinstance(found, Unavailable):
            return all_of("memory", found)
        reserved = found.reserved_bytes
        return {
            "memory_source": source,
            "total_bytes": found.total_bytes,
            "used_bytes": found.used_bytes,
            "free_bytes": found.free_bytes,
            "reserved_bytes": Unavailable("this driver counts it as used") if reserved is None else reserved,
        }

    def sensors(self, device: Device, handle: Handle) -> Mapping[str, Any]:
        ask = self._nvml
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

    def processes(self, device: Device, handle: Handle) -> Mapping[str, Any]:
        """Memory is read right before and after the list, so that the difference is of one moment."""
        before = self._nvml.memory(handle)
        listed = self._nvml.processes(handle)
        after = self._nvml.memory(handle)
        if isinstance(listed, Unavailable):
            return all_of("processes", listed)
        if any(p.used_bytes is None for p in listed):
            return all_of("processes", Unavailable("the driver does not tell memory by process here"))
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

    def pcie(self, device: Device, handle: Handle) -> Mapping[str, Any]:
        """From the byte counters where the driver has them (cheap, exact), else from its own 20 ms window."""
        key = (device.index, device.mig_index)
        counted = self._nvml.pcie_counters(handle)
        if isinstance(counted, Unavailable):
            rates = self._nvml.pcie_throughput(handle)
        else:
            now, before = time.monotonic(), self._before.get(key)
            self._before[key] = (now, *counted)
            rates = _rates(before, (now, *counted))
        if isinstance(rates, Unavailable):
            return all_of("pcie", rates)
        return dict(zip(FIELDS["pcie"], rates, strict=True))


def _ask(getter: Callable[[Handle], Any], handle: Handle | Unavailable) -> Any:
    return handle if isinstance(handle, Unavailable) else getter(handle)


def all_of(kind: str, no: Unavailable) -> dict[str, Any]:
    """Every field of a kind of question, unknown for one reason."""
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
