"""What Windows put of a process's GPU memory into system memory ("shared GPU memory"), from its performance counters.

The single door to PDH. On Windows a full GPU does not fail: the driver spills into system memory, and training silently
becomes much slower. NVML does not tell it. Torch-free. Every failure is a reason, never an exception.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from collections.abc import Collection, Mapping
from typing import Any

COUNTER = r"\GPU Process Memory(*)\Shared Usage"
FIELD = "process_shared_gpu_bytes"
PERIOD_SECONDS = 1.0
"""A look at all processes takes Windows some milliseconds."""
NOT_READ_YET = "not read yet"
MORE_DATA, NO_DATA, NO_INSTANCE = 0x800007D2, 0x800007D5, 0x800007D1
LARGE = 0x400
VALID = (0, 1)
"""PDH_CSTATUS_VALID_DATA and PDH_CSTATUS_NEW_DATA."""
ATTEMPTS = 3
"""Processes that begin between the two halves of a question make its answer longer than it said."""
_REASONS = {
    0xC0000BB8: "this Windows does not count GPU memory by process",
    0xC0000BB9: "this Windows does not count GPU memory by process",
    0xC0000BDB: "Windows does not let its performance counters be read",
    0x80070005: "Windows does not let its performance counters be read",
}
_INSTANCE = re.compile(r"pid_(\d+)_luid_0x([0-9a-f]+)_0x([0-9a-f]+)_phys_\d+", re.IGNORECASE)


class PdhError(Exception):
    """A call to PDH failed with `code`."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(_REASONS.get(code, f"{call} failed with 0x{code:08X}"))
        self.code = code


class _Value(ctypes.Structure):
    _fields_ = (("status", ctypes.c_uint32), ("large", ctypes.c_int64))


class _Item(ctypes.Structure):
    """PDH_FMT_COUNTERVALUE_ITEM_W."""

    _fields_ = (("name", ctypes.c_wchar_p), ("value", _Value))


class Pdh:
    """One query with one wildcard counter. `library`: pdh.dll, or what stands in for it. One thread at a time."""

    def __init__(self, library: Any = None, counter: str = COUNTER) -> None:
        self._library = library if library is not None else ctypes.WinDLL("pdh")  # type: ignore[attr-defined,unused-ignore]
        self._query, self._counter = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("PdhOpenQueryW", None, ctypes.c_size_t(0), ctypes.byref(self._query))
        added = (self._query, ctypes.c_wchar_p(counter), ctypes.c_size_t(0), ctypes.byref(self._counter))
        try:
            self._call("PdhAddEnglishCounterW", *added)
        except PdhError:
            self.close()
            raise

    def read(self) -> list[tuple[str, int]]:
        """(instance, value) of all instances there are now.

        Raises:
            PdhError: the counter cannot be read.
        """
        code = self._try("PdhCollectQueryData", self._query)
        if code in (NO_DATA, NO_INSTANCE):
            return []  # no process uses a GPU
        _check("PdhCollectQueryData", code)
        size, count = ctypes.c_uint32(0), ctypes.c_uint32(0)
        places = (self._counter, ctypes.c_uint32(LARGE), ctypes.byref(size), ctypes.byref(count))
        code = self._try("PdhGetFormattedCounterArrayW", *places, None)
        for _ in range(ATTEMPTS):
            if code != MORE_DATA:
                break
            buffer = ctypes.create_string_buffer(size.value)
            code = self._try("PdhGetFormattedCounterArrayW", *places, buffer)
            if code == 0:
                items = (_Item * count.value).from_buffer(buffer)
                return [(str(i.name), int(i.value.large)) for i in items if i.value.status in VALID]
        if code not in (0, NO_DATA, NO_INSTANCE):
            raise PdhError("PdhGetFormattedCounterArrayW", code)
        return []

    def close(self) -> None:
        if self._query:
            self._try("PdhCloseQuery", self._query)
            self._query = ctypes.c_void_p()

    def _call(self, name: str, *arguments: Any) -> None:
        _check(name, self._try(name, *arguments))

    def _try(self, name: str, *arguments: Any) -> int:
        function = getattr(self._library, name)
        function.restype = ctypes.c_uint32
        return int(function(*arguments))


class SharedGpuMemory:
    """The newest bytes by process, read in a thread of its own."""

    def __init__(self, library: Any = None, period: float = PERIOD_SECONDS) -> None:
        self._library, self._period = library, period
        self._by_pid: Mapping[int, int] = {}
        self._why_not: str | None = NOT_READ_YET
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="shared-gpu-memory", daemon=True)

    @classmethod
    def where_there_is(cls) -> SharedGpuMemory | None:
        """Only Windows spills and counts."""
        return cls() if sys.platform == "win32" else None

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_seconds: float = 0.5) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def complete(self, host: dict[str, Any], pids: Collection[int]) -> None:
        """Add the bytes of `pids` to a sample's host block, or None and the reason."""
        why, by_pid = self._why_not, self._by_pid
        host[FIELD] = None if why else sum(by_pid.get(pid, 0) for pid in pids)
        if why:
            host["unavailable"] = {**host["unavailable"], FIELD: why}

    def _repeat(self) -> None:
        pdh: Pdh | None = None
        while not self._stop.is_set():
            try:
                pdh = pdh or Pdh(self._library)
                self._by_pid, self._why_not = shared_by_pid(pdh.read()), None
            except Exception as error:  # noqa: BLE001 - the counters may be broken, disabled or come later
                self._why_not = str(error) or type(error).__name__
            self._stop.wait(self._period)
        if pdh is not None:
            pdh.close()


def shared_by_pid(instances: list[tuple[str, int]]) -> dict[int, int]:
    """Bytes by process over all its GPUs. An instance is `pid_4321_luid_0x00000000_0x0000D3A9_phys_0`; Windows appends
    `#1` where a name comes twice, and names of another form are not ours."""
    found: dict[int, int] = {}
    for name, value in instances:
        match = _INSTANCE.match(name)
        if match and value > 0:
            pid = int(match.group(1))
            found[pid] = found.get(pid, 0) + value
    return found


def _check(call: str, code: int) -> None:
    if code != 0:
        raise PdhError(call, code)
