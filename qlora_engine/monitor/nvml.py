"""The single door to NVML: every getter returns a figure or `Unavailable` with the reason; no exception leaves it.

Torch-free. Bytes, degrees Celsius, watts, MHz and ratios between 0 and 1, as the names say. May be used from several
threads at once; a call that hangs holds up only its own thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from qlora_engine.monitor import nvml_words
from qlora_engine.monitor.nvml_words import Unavailable

T = TypeVar("T")
NOT_TOLD = 2**64 - 1
"""NVML's "no value" in unsigned 64-bit fields."""
KIB = 1024


@dataclass(frozen=True)
class Handle:
    """A device as one start of NVML knows it; after a restart the driver's pointer must not be used again."""

    generation: int
    pointer: Any


@dataclass(frozen=True)
class DeviceMemory:
    """`reserved_bytes` is None on drivers that know version 1 only; `used_bytes` then includes what they reserve."""

    total_bytes: int
    used_bytes: int
    free_bytes: int
    reserved_bytes: int | None


@dataclass(frozen=True)
class Utilisation:
    gpu_ratio: float
    memory_ratio: float


@dataclass(frozen=True)
class ProcessMemory:
    """`used_bytes` is None where the driver does not tell it (WDDM, MIG)."""

    pid: int
    used_bytes: int | None


class Nvml:
    """NVML, started on first use. `why_not` says why there is none; `generation` changes with every start, and
    a `Handle` of an earlier one is answered with `Unavailable`."""

    def __init__(self) -> None:
        self._lib: Any = None
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._in_flight = 0
        self.why_not: str | None = None
        self.generation = 0

    def start(self) -> bool:
        """True when NVML answers. A start that is under way in another thread counts as "not yet"."""
        if self._lib is not None:
            return True
        if not self._starting.acquire(blocking=False):
            return False
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as error:  # noqa: BLE001 - missing library, driver, permission: all are a reason
            self.why_not = nvml_words.unavailable(error).reason
            return False
        else:
            with self._lock:
                self._lib, self.why_not = pynvml, None
                self.generation += 1
            return True
        finally:
            self._starting.release()

    def stop(self) -> bool:
        """Shut NVML down unless a call is still under way (a hanging driver must not hang us); True when down."""
        with self._lock:
            if self._in_flight:
                return False
            lib, self._lib = self._lib, None
        if lib is not None:
            with contextlib.suppress(Exception):  # it is being left either way
                lib.nvmlShutdown()
        return True

    def restart(self) -> bool:
        """Start anew so that a GPU that came back is found again."""
        return self.stop() and self.start()

    def driver_version(self) -> str | Unavailable:
        return self._text("nvmlSystemGetDriverVersion")

    def device_count(self) -> int | Unavailable:
        return self._figure(int, "nvmlDeviceGetCount")

    def device(self, index: int) -> Handle | Unavailable:
        """By NVML's own order, which is not CUDA's: match devices by `uuid` or `pci_bus_id`."""
        return self._figure(self._handle, "nvmlDeviceGetHandleByIndex", index)

    def name(self, device: Handle) -> str | Unavailable:
        return self._text("nvmlDeviceGetName", device)

    def uuid(self, device: Handle) -> str | Unavailable:
        return self._text("nvmlDeviceGetUUID", device)

    def pci_bus_id(self, device: Handle) -> str | Unavailable:
        return self._figure(lambda info: _decoded(info.busId), "nvmlDeviceGetPciInfo", device)

    def memory(self, device: Handle) -> DeviceMemory | Unavailable:
        """Version 2, which tells apart what the driver reserves; version 1 where the driver is older."""
        version = getattr(self._lib, "nvmlMemory_v2", None)
        found = self._call("nvmlDeviceGetMemoryInfo", device, version) if version else None
        if found is None or (isinstance(found, Unavailable) and found.code in nvml_words.TOO_OLD_CODES):
            found = self._call("nvmlDeviceGetMemoryInfo", device)
        if isinstance(found, Unavailable):
            return found
        if NOT_TOLD in (found.total, found.used, found.free):
            return Unavailable("the driver does not tell it")
        reserved = getattr(found, "reserved", None)
        return DeviceMemory(int(found.total), int(found.used), int(found.free), reserved)

    def utilisation(self, device: Handle) -> Utilisation | Unavailable:
        return self._figure(
            lambda r: Utilisation(r.gpu / 100, r.memory / 100), "nvmlDeviceGetUtilizationRates", device
        )

    def encoder_ratio(self, device: Handle) -> float | Unavailable:
        return self._figure(lambda r: r[0] / 100, "nvmlDeviceGetEncoderUtilization", device)

    def power_watts(self, device: Handle) -> float | Unavailable:
        return self._figure(_milli, "nvmlDeviceGetPowerUsage", device)

    def power_limit_watts(self, device: Handle) -> float | Unavailable:
        return self._figure(_milli, "nvmlDeviceGetEnforcedPowerLimit", device)

    def temperature_celsius(self, device: Handle) -> float | Unavailable:
        """`nvmlDeviceGetTemperatureV`, or the older call where the driver has no such function."""
        found = self._figure(float, "nvmlDeviceGetTemperatureV", device, 0)
        if isinstance(found, Unavailable) and found.code in nvml_words.TOO_OLD_CODES:
            return self._figure(float, "nvmlDeviceGetTemperature", device, 0)
        return found

    def sm_clock_mhz(self, device: Handle) -> int | Unavailable:
        return self._figure(int, "nvmlDeviceGetClockInfo", device, 1)

    def memory_clock_mhz(self, device: Handle) -> int | Unavailable:
        return self._figure(int, "nvmlDeviceGetClockInfo", device, 2)

    def throttle_reasons(self, device: Handle) -> tuple[str, ...] | Unavailable:
        """Why the clocks are lower than they could be, in words; empty when they are not."""
        return self._figure(nvml_words.throttle_words, "nvmlDeviceGetCurrentClocksEventReasons", device)

    def ecc_uncorrected(self, device: Handle) -> int | Unavailable:
        """Uncorrected memory errors since the driver was loaded."""
        return self._figure(int, "nvmlDeviceGetTotalEccErrors", device, 1, 0)

    def processes(self, device: Handle) -> tuple[ProcessMemory, ...] | Unavailable:
        """Compute and graphics processes. Takes the driver's global lock for milliseconds: at most every 5 s."""
        compute = self._call("nvmlDeviceGetComputeRunningProcesses", device)
        if isinstance(compute, Unavailable):
            return compute
        graphics = self._call("nvmlDeviceGetGraphicsRunningProcesses", device)
        found = {p.pid: p for p in (() if isinstance(graphics, Unavailable) else graphics)}
        found.update({p.pid: p for p in compute})
        return tuple(ProcessMemory(int(p.pid), _told(p.usedGpuMemory)) for p in found.values())

    def pcie_counters(self, device: Handle) -> tuple[int, int] | Unavailable:
        """Bytes (received, sent) since the driver was loaded; may wrap. A cheap call, on recent drivers only."""
        values = self._call("nvmlDeviceGetFieldValues", device, [198, 197])
        if isinstance(values, Unavailable):
            return values
        for value in values:
            if value.nvmlReturn:
                return nvml_words.of_code(int(value.nvmlReturn))
        return int(values[0].value.ullVal), int(values[1].value.ullVal)

    def pcie_throughput(self, device: Handle) -> tuple[float, float] | Unavailable:
        """Bytes per second (received, sent) over the driver's own 20 ms window. Blocks 20 ms for each."""
        received = self._figure(int, "nvmlDeviceGetPcieThroughput", device, 1)
        sent = self._figure(int, "nvmlDeviceGetPcieThroughput", device, 0)
        if isinstance(received, Unavailable):
            return received
        return sent if isinstance(sent, Unavailable) else (received * KIB, sent * KIB)

    def mig_devices(self, device: Handle) -> Sequence[Handle]:
        """The MIG slices of a GPU; empty where there are none or the GPU knows no MIG."""
        mode = self._call("nvmlDeviceGetMigMode", device)
        if isinstance(mode, Unavailable) or not mode[0]:
            return ()
        count = self._call("nvmlDeviceGetMaxMigDeviceCount", device)
        if isinstance(count, Unavailable):
            return ()
        slices = (self._call("nvmlDeviceGetMigDeviceHandleByIndex", device, i) for i in range(count))
        return tuple(self._handle(pointer) for pointer in slices if not isinstance(pointer, Unavailable))

    def _handle(self, pointer: Any) -> Handle:
        return Handle(self.generation, pointer)

    def _figure(self, convert: Callable[[Any], T], name: str, *args: Any) -> T | Unavailable:
        found = self._call(name, *args)
        if isinstance(found, Unavailable):
            return found
        try:
            return convert(found)
        except Exception as error:  # noqa: BLE001 - a nonsensical answer is no answer
            return nvml_words.unavailable(error)

    def _text(self, name: str, *args: Any) -> str | Unavailable:
        return self._figure(_decoded, name, *args)

    def _call(self, name: str, *args: Any) -> Any:
        with self._lock:
            lib = self._lib
            if lib is None:
                return Unavailable(self.why_not or "NVML is not running")
            if any(isinstance(a, Handle) and a.generation != self.generation for a in args):
                return Unavailable("NVML was started anew")
            self._in_flight += 1
        try:
            return getattr(lib, name)(*(a.pointer if isinstance(a, Handle) else a for a in args))
        except UnicodeDecodeError as error:  # pynvml decodes strictly; the bytes are in the exception
            return error.object
        except Exception as error:  # noqa: BLE001 - any failing call makes one field n/a, never more
            return nvml_words.unavailable(error)
        finally:
            with self._lock:
                self._in_flight -= 1


def _milli(value: Any) -> float:
    return float(value) / 1000


def _told(value: Any) -> int | None:
    return None if value is None or int(value) == NOT_TOLD else int(value)


def _decoded(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
