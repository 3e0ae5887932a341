"""The single door to NVML. No exception leaves it: what cannot be read is None, with the reason. Torch-free.

Figures are bytes, degrees Celsius, watts, MHz and ratios between 0 and 1, as the names say.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ULLONG_MAX = 2**64 - 1


@dataclass(frozen=True)
class GpuSample:
    """One reading of one GPU. `unavailable` names each field that is None and says why."""

    index: int
    name: str | None
    uuid: str | None
    total_bytes: int | None
    used_bytes: int | None
    reserved_bytes: int | None
    utilisation_ratio: float | None
    temperature_celsius: float | None
    power_watts: float | None
    power_limit_watts: float | None
    unavailable: dict[str, str] = field(default_factory=dict)


class Nvml:
    """NVML, started on first use; `why_not` says why there is none. Safe to use from one thread at a time."""

    def __init__(self) -> None:
        self._lib: Any = None
        self._lock = threading.Lock()
        self.why_not: str | None = None

    def start(self) -> bool:
        """True when NVML answers."""
        with self._lock:
            if self._lib is not None:
                return True
            try:
                import pynvml

                pynvml.nvmlInit()
            except Exception as error:  # noqa: BLE001 - missing library, driver, permission: all are a reason
                self.why_not = reason(error)
                return False
            self._lib, self.why_not = pynvml, None
            return True

    def stop(self) -> None:
        with self._lock:
            if self._lib is not None:
                self._ask(self._lib.nvmlShutdown, {}, "shutdown")
                self._lib = None

    def driver_version(self) -> str | None:
        return _text(self._ask(self._lib.nvmlSystemGetDriverVersion, {}, "driver")) if self.start() else None

    def samples(self) -> list[GpuSample]:
        """One reading of each GPU; empty without NVML. A lost GPU makes NVML start anew at the next call."""
        if not self.start():
            return []
        problems: dict[str, str] = {}
        count = self._ask(self._lib.nvmlDeviceGetCount, problems, "count")
        if count is None:
            self.why_not = problems.get("count")
            self.stop()
            return []
        return [self._sample(index) for index in range(count)]

    def _sample(self, index: int) -> GpuSample:
        lib, no = self._lib, {}  # type: Any, dict[str, str]
        handle = self._ask(lambda: lib.nvmlDeviceGetHandleByIndex(index), no, "device")
        if handle is None:
            return GpuSample(index, None, None, None, None, None, None, None, None, None, no)
        memory = self._memory(handle, no)
        rates = self._ask(lambda: lib.nvmlDeviceGetUtilizationRates(handle), no, "utilisation_ratio")
        power = self._ask(lambda: lib.nvmlDeviceGetPowerUsage(handle), no, "power_watts")
        limit = self._ask(lambda: lib.nvmlDeviceGetEnforcedPowerLimit(handle), no, "power_limit_watts")
        heat = self._ask(lambda: _temperature(lib, handle), no, "temperature_celsius")
        return GpuSample(
            index=index,
            name=_text(self._ask(lambda: lib.nvmlDeviceGetName(handle), no, "name")),
            uuid=_text(self._ask(lambda: lib.nvmlDeviceGetUUID(handle), no, "uuid")),
            total_bytes=_bytes(memory, "total"),
            used_bytes=_bytes(memory, "used"),
            reserved_bytes=_bytes(memory, "reserved"),
            utilisation_ratio=None if rates is None else rates.gpu / 100,
            temperature_celsius=None if heat is None else float(heat),
            power_watts=None if power is None else power / 1000,
            power_limit_watts=None if limit is None else limit / 1000,
            unavailable=no,
        )

    def _memory(self, handle: Any, no: dict[str, str]) -> Any:
        """Version 2 tells what the driver reserves apart; older drivers know version 1 only."""
        version = getattr(self._lib, "nvmlMemory_v2", None)
        if version is not None:
            found = self._ask(
                lambda: self._lib.nvmlDeviceGetMemoryInfo(handle, version=version), {}, "memory"
            )
            if found is not None:
                return found
            no["reserved_bytes"] = "this driver does not tell it"
        found = self._ask(lambda: self._lib.nvmlDeviceGetMemoryInfo(handle), no, "used_bytes")
        if found is None:
            no["total_bytes"] = no["used_bytes"]
        return found

    def _ask(self, call: Callable[[], Any], no: dict[str, str], name: str) -> Any:
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - any failing call makes one field n/a, never more
            no[name] = reason(error)
            return None


def reason(error: BaseException) -> str:
    """Why a call failed, in words."""
    name = type(error).__name__
    words = {
        "NVMLError_LibraryNotFound": "no NVIDIA driver is installed",
        "NVMLError_DriverNotLoaded": "the NVIDIA driver is not loaded",
        "NVMLError_LibRmVersionMismatch": "the driver was updated; restart the computer",
        "NVMLError_NotSupported": "this GPU does not tell it",
        "NVMLError_NoPermission": "no permission to read it",
        "NVMLError_GpuIsLost": "the GPU is lost; restart the computer",
        "NVMLError_ResetRequired": "the GPU needs a reset",
        "NVMLError_FunctionNotFound": "this driver is too old to tell it",
        "NVMLError_Timeout": "the driver did not answer in time",
    }
    return words.get(name, f"{name}: {error}" if str(error) else name)


def _temperature(lib: Any, handle: Any) -> Any:
    if hasattr(lib, "nvmlDeviceGetTemperatureV"):
        return lib.nvmlDeviceGetTemperatureV(handle, lib.NVML_TEMPERATURE_GPU)
    return lib.nvmlDeviceGetTemperature(handle, lib.NVML_TEMPERATURE_GPU)


def _bytes(memory: Any, name: str) -> int | None:
    value = getattr(memory, name, None)
    return None if value is None or int(value) == ULLONG_MAX else int(value)


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return None if value is None else str(value)
