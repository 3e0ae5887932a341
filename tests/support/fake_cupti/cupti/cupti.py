"""Stands in for `cupti.cupti` 13: the same names, numbers and record layout, with records that a test queues.

It insists on what the real one insists on: the driver is started first, one subscriber, a configuration before the
kind is enabled. Records reach the callback only when asked for, in another thread, as CUPTI's own does it.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable
from typing import Any

from cuda.bindings import driver


class Result(enum.IntEnum):
    SUCCESS = 0
    ERROR_INVALID_PARAMETER = 1
    ERROR_NOT_INITIALIZED = 15
    ERROR_NOT_SUPPORTED = 27
    ERROR_UM_PROFILING_NOT_SUPPORTED = 28
    ERROR_UM_PROFILING_NOT_SUPPORTED_ON_DEVICE = 29
    ERROR_UM_PROFILING_NOT_SUPPORTED_ON_NON_P2P_DEVICES = 30
    ERROR_UM_PROFILING_NOT_SUPPORTED_WITH_MPS = 31
    ERROR_VIRTUALIZED_DEVICE_NOT_SUPPORTED = 33
    ERROR_INSUFFICIENT_PRIVILEGES = 35
    ERROR_OLD_PROFILER_API_INITIALIZED = 36
    ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED = 39
    ERROR_VIRTUALIZED_DEVICE_INSUFFICIENT_PRIVILEGES = 40
    ERROR_CONFIDENTIAL_COMPUTING_NOT_SUPPORTED = 41
    ERROR_MIG_DEVICE_NOT_SUPPORTED = 43
    ERROR_WSL_DEVICE_NOT_SUPPORTED = 45
    ERROR_UNKNOWN = 999


class cuptiError(Exception):  # noqa: N801 - the binding's name
    def __init__(self, status: int) -> None:
        self.status = int(status)
        super().__init__(f"{Result(status).name} ({int(status)})")


class ActivityKind(enum.IntEnum):
    KERNEL = 3
    UNIFIED_MEMORY_COUNTER = 25


class ActivityUnifiedMemoryCounterKind(enum.IntEnum):
    UNKNOWN = 0
    BYTES_TRANSFER_HTOD = 1
    BYTES_TRANSFER_DTOH = 2
    CPU_PAGE_FAULT_COUNT = 3
    GPU_PAGE_FAULT = 4
    THRASHING = 5
    THROTTLING = 6
    REMOTE_MAP = 7
    BYTES_TRANSFER_DTOD = 8


class ActivityUnifiedMemoryCounterScope(enum.IntEnum):
    UNKNOWN = 0
    PROCESS_SINGLE_DEVICE = 1
    PROCESS_ALL_DEVICES = 2


class ActivityUnifiedMemoryCounter3(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("counter_kind", ctypes.c_int32),
        ("value", ctypes.c_uint64),
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("src_id", ctypes.c_uint32),
        ("dst_id", ctypes.c_uint32),
        ("stream_id", ctypes.c_uint32),
        ("process_id", ctypes.c_uint32),
        ("flags_", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("processors", ctypes.c_uint64 * 5),
    )


class _Config(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("scope", "kind", "device_id", "enable"))


class ActivityUnifiedMemoryCounterConfig:
    """An array of settings; setting a field of the array sets it in each."""

    def __init__(self, size: int = 1) -> None:
        object.__setattr__(self, "_all", (_Config * size)())

    @property
    def ptr(self) -> int:
        return ctypes.addressof(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, place: int) -> _Config:
        return self._all[place]

    def __setattr__(self, name: str, value: int) -> None:
        for each in self._all:
            setattr(each, name, int(value))


fail: dict[str, int] = {}
"""Which call is answered with which status."""
hang: dict[str, threading.Event] = {}
"""Which call waits until its event is set."""
log: list[str] = []
configured: dict[int, tuple[int, int, int]] = {}
enabled: set[int] = set()
queued: list[Any] = []
lost = 0
_state: dict[str, Any] = {"subscriber": None, "requested": None, "completed": None}


def reset() -> None:
    global lost
    for each in (fail, hang, log, configured, enabled, queued):
        each.clear()
    lost = 0
    _state.update(subscriber=None, requested=None, completed=None)
    driver.result = 0
    driver.calls.clear()


def happen(
    kind: int, value: int, count: int = 1, activity: int = ActivityKind.UNIFIED_MEMORY_COUNTER
) -> None:
    """`count` records as the driver would write them, if they are being counted."""
    if activity not in enabled or (
        activity == ActivityKind.UNIFIED_MEMORY_COUNTER and kind not in configured
    ):
        return
    queued.extend(
        ActivityUnifiedMemoryCounter3(kind=activity, counter_kind=kind, value=value) for _ in range(count)
    )


def subscribe(callback: Callable[..., Any], userdata: int) -> int:
    _called("subscribe")
    if _state["subscriber"] is not None:
        raise cuptiError(Result.ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED)
    _state["subscriber"] = callback
    return 4711


def unsubscribe(subscriber: int) -> None:
    _called("unsubscribe")
    _state["subscriber"] = None


def activity_configure_unified_memory_counter(config: int, count: int) -> None:
    _called("activity_configure_unified_memory_counter")
    for each in (_Config * count).from_address(config):
        if each.kind == 0 or each.scope not in (1, 2):
            raise cuptiError(Result.ERROR_INVALID_PARAMETER)
        if each.enable:
            configured[each.kind] = (each.scope, each.device_id, each.enable)


def activity_register_callbacks(
    requested: Callable[[], tuple[int, int]], completed: Callable[[list[Any]], None]
) -> None:
    _called("activity_register_callbacks")
    _state.update(requested=requested, completed=completed)


def activity_enable(kind: int) -> None:
    _called("activity_enable")
    enabled.add(int(kind))


def activity_disable(kind: int) -> None:
    _called("activity_disable")
    enabled.discard(int(kind))


def activity_flush_all(flag: int) -> None:
    """Buffers of the size that was asked for, one callback each."""
    _called("activity_flush_all")
    size, _ = _state["requested"]()
    most = size // ctypes.sizeof(ActivityUnifiedMemoryCounter3)
    while queued:
        part = [queued.pop(0) for _ in range(min(most, len(queued)))]
        thread = threading.Thread(target=_state["completed"], args=(part,), name="cupti-worker")
        thread.start()
        thread.join()


def activity_get_num_dropped_records(context: int, stream_id: int, dropped: int) -> None:
    global lost
    _called("activity_get_num_dropped_records")
    ctypes.c_size_t.from_address(dropped).value, lost = lost, 0


def _called(name: str) -> None:
    log.append(name)
    if name in hang:
        hang[name].wait()
    if name in fail:
        raise cuptiError(fail[name])
    if not driver.calls:
        raise cuptiError(Result.ERROR_NOT_INITIALIZED)
