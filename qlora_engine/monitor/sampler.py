"""Takes a reading of GPU, paged and host memory at a steady rate, in threads of its own. Torch-free.

The driver is asked by the threads of `gpu.GpuWatch`; the thread here only puts their newest answers beside the host's
and hands them out. A driver call that hangs delays neither the readings nor `stop`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from qlora_engine.monitor.gpu import GpuWatch, next_due
from qlora_engine.monitor.host import Host
from qlora_engine.monitor.nvml import Nvml
from qlora_engine.monitor.residency import ResidencyMeter
from qlora_engine.monitor.shared_memory import SharedGpuMemory

Sample = dict[str, Any]
Source = Callable[[], Mapping[str, Any] | None]


class Sampler:
    """Readings at `hz`, drift-free, for the window's process and for the engine's.

    A sample is JSON: {"time", "host", "gpus", "gpu_problem", "paged", "torch", "parts", "unavailable"}. The last
    three sources are what only the engine's process knows: `paged_source` (managed optimizer memory), `torch_source`
    (the CUDA allocator), `parts_source` (bytes of weights, adapters, ...). `on_sample` is called in the sampler's
    thread. A source or `on_sample` that raises is told in the log and, for a source, in "unavailable".
    """

    def __init__(
        self,
        hz: float = 4.0,
        *,
        pid: int | None = None,
        on_sample: Callable[[Sample], None] | None = None,
        paged_source: Source | None = None,
        torch_source: Source | None = None,
        parts_source: Source | None = None,
        nvml: Nvml | None = None,
        shared: SharedGpuMemory | None = None,
    ) -> None:
        self._shared = shared or SharedGpuMemory.where_there_is()
        self._period = 1.0 / hz
        self._host = Host(pid)
        self._gpus = GpuWatch(hz, lambda: self._host.pids, self._host.memory, nvml)
        self._residency = ResidencyMeter()
        self._on_sample = on_sample
        self._sources = {"paged": paged_source, "torch": torch_source, "parts": parts_source}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._told: set[str] = set()
        self.latest: Sample | None = None

    def start(self, *, own_beat: bool = True) -> None:
        """Begin. Without `own_beat` only the driver is asked regularly, and whoever wants a sample calls `sample`."""
        self._gpus.start()
        if self._shared is not None:
            self._shared.start()
        if own_beat:
            self._thread.start()

    def set_rate(self, hz: float) -> None:
        """From the next reading on; the driver goes on being asked as before."""
        self._period = 1.0 / hz

    def stop(self, timeout_seconds: float = 0.5) -> None:
        """End soon, whatever the driver does; at most about `timeout_seconds` later."""
        self._stop.set()
        until = time.monotonic() + timeout_seconds
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds)
        if self._shared is not None:
            self._shared.stop(max(0.0, until - time.monotonic()))
        self._gpus.stop(max(0.0, until - time.monotonic()))

    def wait_for_driver(self, timeout_seconds: float = 0.5) -> bool:
        """Wait until the driver has answered once, for whoever wants the very first sample complete."""
        return self._gpus.has_answered.wait(timeout_seconds)

    def is_watching(self) -> bool:
        """False once the watched process has ended."""
        return self._host.is_running()

    def sample(self) -> Sample:
        """One reading now, with the newest answers of the driver. Never waits for it."""
        with self._lock:
            no: dict[str, str] = {}
            problem = self._gpus.problem()
            taken = {
                "time": time.time(),
                "host": self._of_host(no),
                "gpus": [gpu.to_json() for gpu in self._gpus.samples()],
                "gpu_problem": problem,
                **{name: self._from(name, no) for name in self._sources},
                "unavailable": no | ({"gpus": problem} if problem else {}),
            }
            self._residency.complete(taken)
            return taken

    def _of_host(self, no: dict[str, str]) -> dict[str, Any] | None:
        try:
            found = dict(vars(self._host.sample()))
            if self._shared is not None:
                self._shared.complete(found, self._host.pids)
            return found
        except Exception as error:  # noqa: BLE001 - /proc may refuse anything; the GPU's figures go on
            self._tell_once("the host's memory could not be read", error)
            no["host"] = f"{type(error).__name__}: {error}"
            return None

    def _from(self, name: str, no: dict[str, str]) -> dict[str, Any] | None:
        source = self._sources[name]
        if source is None:
            no[name] = "only the engine's own process knows it"
            return None
        try:
            found = source()
        except Exception as error:  # noqa: BLE001 - the optimizer may be changing under the reader's hands
            self._tell_once(f"the source of {name!r} failed", error)
            no[name] = f"{type(error).__name__}: {error}"
            return None
        if found is None:
            no[name] = "nothing to tell yet"
        return None if found is None else dict(found)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self.latest = self.sample()
            if self._on_sample is not None:
                try:
                    self._on_sample(self.latest)
                except Exception as error:  # noqa: BLE001 - a full disk must not end the live picture
                    self._tell_once("a sample could not be handed on", error)
            due = next_due(due, self._period, time.monotonic())
            self._stop.wait(due - time.monotonic())

    def _tell_once(self, what: str, error: Exception) -> None:
        words = f"{what}: {type(error).__name__}: {error}"
        if words not in self._told:
            self._told.add(words)
            logging.getLogger(__name__).warning(words)
