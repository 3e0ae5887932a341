"""The single door to CUPTI: counts the managed pages that move between GPU and CPU, and the faults that move them.

Torch-free. A diagnostic switch (`training.count_page_moves`), off by default: CUPTI must be set up before the CUDA
context exists, takes one subscriber in a process (torch's profiler is another), and faults become slower to handle.
No exception leaves this module: what cannot be counted is None with the reason.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)
SWITCH = "training.count_page_moves"
BUFFER_BYTES = 1024**2
"""Ten thousand records: turning one buffer into Python objects holds the GIL for some milliseconds."""
DELIVER_SECONDS = 0.1
LEAVE_SECONDS = 2.0
MEASURED = "measured"
NO_PACKAGE = "the package cupti-python is not installed; install the extra `gpu`"
NO_DRIVER = "no NVIDIA driver is installed"
NO_LIBRARY = ("DynamicLibNotFoundError", "NotSupportedError")
"""What cuda-bindings and cupti-python raise where there is no libcuda."""
NO_DEVICE = 100
ONLY_LINUX = "only on Linux does the driver move managed pages"
ON_CPU = "a run on the CPU has no managed memory"
_REASONS = {
    2: "CUPTI does not know this GPU",
    15: "the NVIDIA driver is too old for this CUPTI",
    27: "this driver cannot count page moves",
    28: "this system cannot count page moves",
    29: "this GPU cannot count page moves",
    30: "page moves cannot be counted with GPUs that do not reach each other's memory",
    31: "page moves cannot be counted under MPS",
    33: "page moves cannot be counted on a virtual GPU",
    35: "the NVIDIA driver lets only administrators profile here",
    36: "another profiler has CUPTI already",
    39: "another profiler has CUPTI already",
    40: "page moves cannot be counted on a virtual GPU without profiling rights",
    41: "page moves cannot be counted under confidential computing",
    43: "page moves cannot be counted on a MIG slice",
    45: "page moves cannot be counted under WSL",
}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """Since the counting began. A GPU fault is a group of faults on one page. `lost_records` could not be kept by CUPTI:
    with any of them the rest are lower bounds."""

    to_gpu_bytes: int = 0
    to_cpu_bytes: int = 0
    gpu_faults: int = 0
    cpu_faults: int = 0
    lost_records: int = 0


class UncountableError(Exception):
    """Says in words why nothing can be counted."""


class PageMoves:
    """Counts from `start` to `stop`. `why_not` tells why nothing is counted; None while it is, and before `start`."""

    def __init__(self) -> None:
        self.why_not: str | None = None
        self._cupti: Any = None
        self._subscriber: Any = None
        self._lock = threading.Lock()
        self._counts = Counts()
        self._told: tuple[float, Counts] | None = None
        self._trouble: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._deliver, name="cupti-deliver", daemon=True)

    def start(self) -> None:
        """Begin; before anything in this process makes a CUDA context."""
        if sys.platform != "linux":
            self.why_not = ONLY_LINUX
            return
        try:
            self._cupti = _initialized()
            self._subscribe()
        except Exception as error:  # noqa: BLE001 - the run goes on without its diagnosis, whatever is wrong
            self.why_not = reason_of(error)
            self._leave()
        else:
            self._told = (time.monotonic(), Counts())
            self._thread.start()

    def stop(self) -> None:
        """Take in what is still on its way, and let go of CUPTI, unless the driver hangs in a call."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(LEAVE_SECONDS)
        if not self._thread.is_alive():
            self._leave()

    def counts(self) -> Counts:
        with self._lock:
            return self._counts

    def block(self) -> dict[str, Any]:
        """What the sample's "paged" block gets: rates since the last call, in bytes and faults per second. One reader."""
        why = self.why_not or self._trouble
        if self._told is None or why:
            return {"page_moves_reason": why} if why else {}
        (before, then), now, found = self._told, time.monotonic(), self.counts()
        self._told = (now, found)
        seconds = max(now - before, 1e-3)
        block: dict[str, Any] = {
            "moving_kind": MEASURED,
            "to_gpu_bytes_per_second": (found.to_gpu_bytes - then.to_gpu_bytes) / seconds,
            "to_cpu_bytes_per_second": (found.to_cpu_bytes - then.to_cpu_bytes) / seconds,
            "gpu_page_faults_per_second": (found.gpu_faults - then.gpu_faults) / seconds,
            "cpu_page_faults_per_second": (found.cpu_faults - then.cpu_faults) / seconds,
        }
        if found.lost_records:
            block["page_moves_reason"] = (
                f"CUPTI lost {found.lost_records:,} records: the figures are the least"
            )
        return block

    def take(self, records: Iterable[Any]) -> None:
        """Add records as CUPTI delivers them, in a thread of its own (`CUpti_ActivityUnifiedMemoryCounter3`)."""
        kinds = self._cupti.ActivityUnifiedMemoryCounterKind
        wanted = int(self._cupti.ActivityKind.UNIFIED_MEMORY_COUNTER)
        to_gpu = to_cpu = gpu_faults = cpu_faults = 0
        for record in records:
            if record.kind != wanted:
                continue
            kind = record.counter_kind
            if kind == kinds.BYTES_TRANSFER_HTOD:
                to_gpu += record.value
            elif kind == kinds.BYTES_TRANSFER_DTOH:
                to_cpu += record.value
            elif kind == kinds.GPU_PAGE_FAULT:
                gpu_faults += record.value
            elif kind == kinds.CPU_PAGE_FAULT_COUNT:
                cpu_faults += 1  # its value is the program counter of the instruction
        with self._lock:
            had = self._counts
            self._counts = Counts(
                had.to_gpu_bytes + to_gpu, had.to_cpu_bytes + to_cpu, had.gpu_faults + gpu_faults,
                had.cpu_faults + cpu_faults, had.lost_records,
            )  # fmt: skip

    def _subscribe(self) -> None:
        """The order that CUPTI asks for: subscribe, configure, register, enable."""
        cupti = self._cupti
        self._subscriber = cupti.subscribe(_ignored, 0)
        kinds = cupti.ActivityUnifiedMemoryCounterKind
        wanted = (
            kinds.BYTES_TRANSFER_HTOD,
            kinds.BYTES_TRANSFER_DTOH,
            kinds.GPU_PAGE_FAULT,
            kinds.CPU_PAGE_FAULT_COUNT,
        )
        config = cupti.ActivityUnifiedMemoryCounterConfig(len(wanted))
        config.scope = cupti.ActivityUnifiedMemoryCounterScope.PROCESS_SINGLE_DEVICE  # scope and device mean
        config.device_id = 0  # nothing since CUDA 7, but must be valid: all GPUs of the process are counted
        config.enable = 1
        for place, kind in enumerate(wanted):
            config[place].kind = kind
        cupti.activity_configure_unified_memory_counter(config.ptr, len(wanted))
        cupti.activity_register_callbacks(lambda: (BUFFER_BYTES, 0), self._take_safely)
        cupti.activity_enable(cupti.ActivityKind.UNIFIED_MEMORY_COUNTER)

    def _take_safely(self, records: Iterable[Any]) -> None:
        try:
            self.take(records)
        except Exception:  # an exception must not reach CUPTI's own thread
            log.exception("records of page moves could not be read")

    def _deliver(self) -> None:
        """Ask CUPTI for its records; it hands out none by itself before a buffer is full."""
        while not self._stop.wait(DELIVER_SECONDS):
            try:
                self._cupti.activity_flush_all(0)
                self._note_lost()
                self._trouble = None
            except Exception as error:  # noqa: BLE001 - a driver that fails here may be fine the next time
                self._trouble = reason_of(error)

    def _note_lost(self) -> None:
        lost = ctypes.c_size_t(0)
        self._cupti.activity_get_num_dropped_records(0, 0, ctypes.addressof(lost))
        if lost.value:
            with self._lock:
                had = self._counts
                self._counts = Counts(
                    had.to_gpu_bytes, had.to_cpu_bytes, had.gpu_faults, had.cpu_faults, had.lost_records + lost.value,
                )  # fmt: skip

    def _leave(self) -> None:
        """Disabled before the last flush, so that nothing is on its way to a callback of an ended run."""
        cupti, subscriber = self._cupti, self._subscriber
        self._subscriber = None
        if cupti is None or subscriber is None:
            return
        leaving: tuple[Callable[[], Any], ...] = (
            lambda: cupti.activity_disable(cupti.ActivityKind.UNIFIED_MEMORY_COUNTER),
            lambda: cupti.activity_flush_all(1),
            lambda: cupti.unsubscribe(subscriber),
        )
        for call in leaving:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - it is being left either way
                log.info("leaving CUPTI: %s", reason_of(error))


@contextmanager
def counting(is_wanted: bool, device: str = "auto") -> Iterator[PageMoves | None]:
    """Count page moves while the block runs; None when nobody asked for it."""
    if not is_wanted:
        yield None
        return
    moves = PageMoves()
    if device == "cpu":
        moves.why_not = ON_CPU
    else:
        moves.start()
    try:
        yield moves
    finally:
        moves.stop()


def reason_of(error: BaseException) -> str:
    """Why a call failed, in words."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return _REASONS.get(int(status), f"CUPTI error {int(status)}: {error}")
    if isinstance(error, ImportError):
        return NO_PACKAGE
    name, text = type(error).__name__, str(error)
    if isinstance(error, UncountableError):
        return text
    if name in NO_LIBRARY:
        return NO_DRIVER
    return f"{name}: {text}" if text else name


def _initialized() -> Any:
    """The binding, with CUDA's driver initialized, which the configuration needs; that makes no context yet."""
    from cuda.bindings import driver
    from cupti import cupti

    (result,) = driver.cuInit(0)
    if int(result) == NO_DEVICE:
        raise UncountableError("CUDA sees no GPU")
    if int(result) != 0:
        raise UncountableError(f"the CUDA driver does not start: error {int(result)}")
    return cupti


def _ignored(*_: Any) -> None:
    """A subscriber needs a callback; none is enabled."""
