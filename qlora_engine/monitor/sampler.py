"""Takes a reading of GPU, paged and host memory at a steady rate, in threads of its own. Torch-free.

NVML is asked in one thread and the readings are handed out by another: a driver call that hangs delays neither the
readings nor `stop`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from qlora_engine.monitor.host import Host
from qlora_engine.monitor.nvml import Nvml

Sample = dict[str, Any]
Source = Callable[[], Mapping[str, Any] | None]
STALE_SECONDS = 3.0


class Sampler:
    """Readings at `hz`, drift-free: {"time", "host", "gpus", "gpu_problem", "paged", "torch"}.

    `paged_source` and `torch_source` add what only the engine's process knows. `on_sample` is called in the sampler's
    thread.
    """

    def __init__(
        self,
        hz: float = 4.0,
        *,
        pid: int | None = None,
        on_sample: Callable[[Sample], None] | None = None,
        paged_source: Source | None = None,
        torch_source: Source | None = None,
        nvml: Nvml | None = None,
    ) -> None:
        self._period = 1.0 / hz
        self._host = Host(pid)
        self._nvml = nvml or Nvml()
        self._on_sample = on_sample
        self._paged_source, self._torch_source = paged_source, torch_source
        self._gpus: tuple[float, list[Any]] = (0.0, [])
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.latest: Sample | None = None

    def start(self) -> None:
        for target, name in ((self._watch_gpus, "nvml"), (self._run, "sampler")):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self, timeout_seconds: float = 1.0) -> None:
        """End soon; a driver call that hangs is left behind."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout_seconds)

    def sample(self) -> Sample:
        """One reading now, with the newest answer of the driver."""
        taken, gpus = self._gpus
        is_fresh = time.monotonic() - taken < STALE_SECONDS
        return {
            "time": time.time(),
            "host": asdict(self._host.sample()),
            "gpus": [asdict(gpu) for gpu in gpus] if is_fresh else [],
            "gpu_problem": self._problem(is_fresh),
            "paged": self._from(self._paged_source),
            "torch": self._from(self._torch_source),
        }

    def _problem(self, is_fresh: bool) -> str | None:
        if self._nvml.why_not:
            return self._nvml.why_not
        return None if is_fresh else "the driver is not answering"

    def _from(self, source: Source | None) -> dict[str, Any] | None:
        if source is None:
            return None
        found = source()
        return None if found is None else dict(found)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self.latest = self.sample()
            if self._on_sample is not None:
                self._on_sample(self.latest)
            due = max(due + self._period, time.monotonic())
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _watch_gpus(self) -> None:
        while not self._stop.is_set():
            self._gpus = (time.monotonic(), self._nvml.samples())
            self._stop.wait(self._period if self._gpus[1] else 2.0)


def first_gpu_answer(sampler: Sampler, timeout_seconds: float = 0.5) -> None:
    """Wait until the driver has answered once, at most `timeout_seconds`."""
    until = time.monotonic() + timeout_seconds
    while sampler._gpus[0] == 0.0 and time.monotonic() < until:
        time.sleep(0.01)
