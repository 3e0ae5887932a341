"""The sampler's promises, measured: its cost, its beat, its end, and that nothing it asks can hold it up."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.monitor.host import Host
from qlora_engine.monitor.sampler import Sampler
from tests.engine.monitor.conftest import until
from tests.support.fake_nvml import GIB, FakeDriver
from tests.support.pace import limit

ROOT = Path(__file__).resolve().parents[3]
COST = """
import json, os, sys, time
from pathlib import Path
from qlora_engine.monitor.sampler import Sampler
from qlora_engine.monitor.trace import TraceWriter
writer = TraceWriter(Path(sys.argv[1]))
taken = []
def keep(sample):
    writer.append(sample)
    taken.append(sample["time"])
sampler = Sampler(4.0, on_sample=keep)
sampler.start()
time.sleep(2.0)
began, processor, counted = time.monotonic(), time.process_time(), len(taken)
time.sleep(12.0)
cost = (time.process_time() - processor) / (time.monotonic() - began)
gpus = len(sampler.latest["gpus"])
sampler.stop()
print(json.dumps({"cost": cost, "samples": len(taken) - counted, "gpus": gpus}))
"""


def test_two_gpus_at_4_hz_cost_little_of_a_core(library: FakeDriver, tmp_path: Path) -> None:
    """In a process of its own, through the loader's path like the real driver, each sample written to disk."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.path.parent), "FAKE_NVML_GPUS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", COST, str(tmp_path / "memory.jsonl")],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    print(f"cost {found['cost'] * 100:.2f} % of a core, {found['samples']} samples in 12 s")
    assert found["gpus"] == 2
    assert 46 <= found["samples"] <= 49
    assert found["cost"] < limit(0.0133)


def test_the_beat_does_not_drift(driver: FakeDriver) -> None:
    """100 beats of 20 ms: the last is where it should be, however long each sample took."""
    times: list[float] = []
    sampler = Sampler(50.0, on_sample=lambda sample: times.append(time.monotonic()))
    sampler.start()
    until(lambda: len(times) >= 101)
    sampler.stop()
    beats = [(t - times[0]) / 0.02 for t in times]
    drift = min(abs(beat - round(beat)) for beat in beats[-10:]) * 0.02
    print(f"drift after {beats[-1]:.0f} beats: {drift * 1e3:.2f} ms")
    assert drift < 0.004


@pytest.mark.parametrize(
    "call", ["nvmlInitWithFlags", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeRunningProcesses_v3"]
)
def test_a_stuck_driver_delays_neither_samples_nor_the_end(call: str, driver: FakeDriver) -> None:
    driver.hang(call)
    times: list[float] = []
    sampler = Sampler(20.0, on_sample=lambda sample: times.append(time.monotonic()))
    sampler.start()
    time.sleep(2.0)
    began = time.monotonic()
    sampler.stop()
    took = time.monotonic() - began
    gaps = [b - a for a, b in itertools.pairwise(times)]
    print(f"{call} stuck: longest gap {max(gaps) * 1e3:.0f} ms of 50, stop took {took * 1e3:.0f} ms")
    assert max(gaps) < 0.25
    assert took < 0.8
    driver.heal(call)
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("nvml-")])


def test_a_slow_driver_of_half_a_second(driver: FakeDriver) -> None:
    for call in ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetFieldValues"):
        driver.slow(call, 0.5)
    times: list[float] = []
    sampler = Sampler(10.0, on_sample=lambda sample: times.append(time.monotonic()))
    sampler.start()
    until(lambda: bool(sampler.latest and sampler.latest["gpus"] and sampler.latest["gpus"][0]["used_bytes"]))
    assert max(b - a for a, b in itertools.pairwise(times)) < 0.4
    sampler.stop(2.0)


def test_stopping_at_once_and_twice(driver: FakeDriver) -> None:
    before = threading.active_count()
    for _ in range(5):
        sampler = Sampler(4.0)
        sampler.start()
        sampler.stop()
        sampler.stop()
    until(lambda: threading.active_count() <= before)


def test_memory_does_not_grow(driver: FakeDriver) -> None:
    driver.reset(2)
    sampler = Sampler(200.0)
    sampler.start()
    until(lambda: len(sampler.sample()["gpus"]) == 2)
    for _ in range(100):
        sampler.sample()
    tracemalloc.start()
    grown = [grown_by(sampler, 700), grown_by(sampler, 700)]
    tracemalloc.stop()
    sampler.stop()
    print(f"{grown[0] / 1024:.0f} and {grown[1] / 1024:.0f} KiB more after 700 samples each")
    assert min(grown) < 100 * 1024  # a table of the interpreter that doubles once is no leak


def grown_by(sampler: Sampler, samples: int) -> int:
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(samples):
        sampler.sample()
    gc.collect()
    return tracemalloc.get_traced_memory()[0] - before


def test_sources_make_a_sample_whole(driver: FakeDriver) -> None:
    sampler = Sampler(
        4.0,
        paged_source=lambda: {"managed_bytes": 0},
        torch_source=lambda: {"gpu_uuid": "0000-0", "allocated_bytes": GIB, "reserved_bytes": 2 * GIB},
        parts_source=lambda: {"adapters_bytes": 5},
    )
    sampler.start(own_beat=False)
    assert sampler.wait_for_driver(2.0)
    sample = sampler.sample()
    sampler.stop()
    assert sample["unavailable"] == {}
    assert sample["paged"]["on_cpu_bytes"] == 0
    assert sample["parts"] == {"adapters_bytes": 5}
    assert json.loads(json.dumps(sample)) == sample


def test_what_fails_is_told_once_and_the_rest_goes_on(
    driver: FakeDriver, caplog: Any, monkeypatch: Any
) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("dictionary changed size during iteration")

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    def refused(_: object) -> None:
        raise PermissionError("/proc is not yours")

    monkeypatch.setattr(Host, "sample", refused)
    taken: list[float] = []
    with caplog.at_level(logging.WARNING):
        sampler = Sampler(100.0, parts_source=broken, on_sample=full)
        sampler.start()
        until(lambda: bool(sampler.latest) and taken.append(0.0) is None and len(taken) > 20)
        sampler.stop()
    assert sampler.latest is not None
    assert sampler.latest["unavailable"]["parts"] == "RuntimeError: dictionary changed size during iteration"
    assert sampler.latest["host"] is None
    assert "PermissionError" in sampler.latest["unavailable"]["host"]
    assert len([r for r in caplog.records if r.name.startswith("qlora_engine.monitor")]) == 3


def test_a_source_without_an_answer_yet(driver: FakeDriver) -> None:
    sampler = Sampler(4.0, paged_source=lambda: None)
    sample = sampler.sample()
    assert sample["unavailable"]["paged"] == "nothing to tell yet"
    assert sample["unavailable"]["torch"] == "only the engine's own process knows it"
    assert sample["gpu_problem"] == "not read yet"
