"""Watching GPUs whose driver hangs, fails, vanishes and returns: the other figures go on, and nobody waits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qlora_engine.monitor import gpu as gpu_module
from qlora_engine.monitor.gpu import GpuSample, GpuWatch, next_due
from qlora_engine.monitor.questions import FIELDS, Questions
from tests.engine.monitor.conftest import until
from tests.support.fake_nvml import GIB, FakeDriver

Watching = Callable[..., GpuWatch]
HOST = (64 * GIB, 40 * GIB)


REAL = {name: getattr(gpu_module, name) for name in ("SENSOR_SECONDS", "PCIE_SECONDS", "PROCESS_SECONDS")}
QUICK = {"SENSOR_SECONDS": 0.1, "PCIE_SECONDS": 0.1, "PROCESS_SECONDS": 0.2}


@pytest.fixture
def watching(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watching]:
    """Starts a watch of this process's memory on the stand-in's GPUs, asking quickly; ends them all."""
    for name, seconds in QUICK.items():
        monkeypatch.setattr(gpu_module, name, seconds)
    begun: list[GpuWatch] = []

    def start(gpus: int = 1, own: frozenset[int] = frozenset({os.getpid()}), hz: float = 50.0) -> GpuWatch:
        if gpus != 1:
            driver.reset(gpus)
        watch = GpuWatch(hz, lambda: own, lambda: HOST)
        watch.start()
        begun.append(watch)
        return watch

    yield start
    for name in driver.call_names:
        driver.heal(name)
    for watch in begun:
        watch.stop(2.0)


def complete(watch: GpuWatch) -> bool:
    """Every kind of question has been answered at least once, for every GPU."""
    samples = watch.samples()
    return bool(samples) and not any(
        reason == gpu_module.NOT_READ_YET for sample in samples for reason in sample.unavailable.values()
    )


def the(watch: GpuWatch, index: int = 0) -> GpuSample:
    return next(s for s in watch.samples() if s.index == index and s.mig_index is None)


def test_two_gpus_with_every_figure(driver: FakeDriver, watching: Watching) -> None:
    watch = watching(gpus=2)
    driver.set_processes(0, [(os.getpid(), 5 * GIB), (1, GIB // 2)])
    until(lambda: complete(watch) and the(watch).own_bytes == 5 * GIB, 8)
    first, second = watch.samples()
    assert (first.name, second.name) == ("NVIDIA GeForce RTX 4090 #0", "NVIDIA GeForce RTX 4090 #1")
    assert (first.uuid, first.pci_bus_id, first.driver_version) == (
        "GPU-0000-0",
        "00000000:01:00.0",
        "580.65.06",
    )
    assert first.unavailable == {}
    assert (first.total_bytes, first.used_bytes, first.reserved_bytes) == (24 * GIB, 6 * GIB, GIB // 4)
    assert (first.own_bytes, first.others_bytes, first.unaccounted_bytes) == (5 * GIB, GIB // 2, GIB // 2)
    assert (first.utilisation_ratio, first.power_watts, first.temperature_celsius) == (0.97, 351.5, 67.0)
    assert (first.sm_clock_mhz, first.memory_clock_mhz, first.throttle_reasons) == (
        2520,
        10501,
        ("power limit",),
    )
    assert (first.ecc_uncorrected_count, first.pcie_sent_bytes_per_second) == (3, 0.0)
    assert watch.problem() is None


@pytest.mark.parametrize(
    "hanging", ["nvmlDeviceGetMemoryInfo_v2", "nvmlInitWithFlags", "nvmlDeviceGetFieldValues"]
)
def test_a_hanging_driver_delays_nobody(hanging: str, driver: FakeDriver, watching: Watching) -> None:
    driver.hang(hanging)
    watch = watching()
    slowest = 0.0
    for _ in range(200):
        began = time.perf_counter()
        watch.samples()
        watch.problem()
        slowest = max(slowest, time.perf_counter() - began)
        time.sleep(0.001)
    assert slowest < 0.05
    began = time.perf_counter()
    watch.stop(0.5)
    assert time.perf_counter() - began < 0.6
    assert driver.count(hanging) >= 1
    driver.heal(hanging)
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("nvml-")])


def test_a_figure_that_is_overdue_is_unknown_and_comes_back(
    driver: FakeDriver, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu_module.OVERDUE_SECONDS, "memory", 0.2)
    watch = watching()
    until(lambda: complete(watch), 8)
    driver.hang("nvmlDeviceGetMemoryInfo_v2")
    until(lambda: the(watch).used_bytes is None)
    assert the(watch).unavailable["used_bytes"] == "the driver is not answering"
    assert the(watch).utilisation_ratio == 0.97  # the sensors' thread goes on
    driver.heal("nvmlDeviceGetMemoryInfo_v2")
    until(lambda: the(watch).used_bytes == 6 * GIB)


def test_a_driver_that_hangs_from_the_start_is_told(
    driver: FakeDriver, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu_module.OVERDUE_SECONDS, "memory", 0.2)
    driver.hang("nvmlInitWithFlags")
    watch = watching()
    assert watch.problem() == "not read yet"
    until(lambda: watch.problem() == "the driver is not answering")
    driver.heal("nvmlInitWithFlags")
    until(lambda: len(watch.samples()) == 1)


def test_a_slow_driver_is_asked_less_often_and_still_read(driver: FakeDriver, watching: Watching) -> None:
    driver.slow("nvmlDeviceGetMemoryInfo_v2", 0.5)
    watch = watching(hz=4.0)
    until(lambda: complete(watch), 8)
    driver.devices[0].used = 7 * GIB
    assert until(lambda: the(watch).used_bytes == 7 * GIB) < 1.6
    assert driver.count("nvmlDeviceGetMemoryInfo_v2") < 40


def test_a_gpu_that_is_lost_keeps_its_row_and_is_picked_up_again(
    driver: FakeDriver, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_module, "RETRY_SECONDS", 0.1)
    watch = watching(gpus=2)
    until(lambda: complete(watch), 8)
    driver.devices[0].is_lost = 1
    until(lambda: the(watch).used_bytes is None)
    until(lambda: driver.starts > 1)
    until(lambda: the(watch, 1).used_bytes == 6 * GIB)
    lost = the(watch)
    assert lost.name == "NVIDIA GeForce RTX 4090 #0"
    assert lost.unavailable["used_bytes"].startswith("the GPU is lost")
    driver.devices[0].is_lost = 0
    assert until(lambda: the(watch).used_bytes == 6 * GIB, 10) < 10


def test_vain_restarts_become_rarer(
    driver: FakeDriver, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_module, "RETRY_SECONDS", 0.05)
    starts = driver.starts
    driver.devices[0].is_lost = 1
    watching()
    time.sleep(1.0)
    assert 3 <= driver.starts - starts <= 7  # at 0, 0.05, 0.15, 0.35, 0.75 s


def test_a_gpu_that_leaves_the_list_is_looked_for(
    driver: FakeDriver, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ctypes

    monkeypatch.setattr(gpu_module, "RETRY_SECONDS", 0.1)
    watch = watching(gpus=2)
    until(lambda: len(watch.samples()) == 2)
    count = ctypes.c_uint.in_dll(driver.library, "fake_device_count")
    count.value = 0
    driver.devices[0].is_lost = 1
    until(lambda: watch.problem() == "the driver sees no GPU")
    assert watch.samples() == []
    count.value, driver.devices[0].is_lost = 2, 0
    until(lambda: len(watch.samples()) == 2)


def test_a_driver_that_is_updated_under_our_hands(
    driver: FakeDriver, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_module, "RETRY_SECONDS", 0.1)
    driver.fail("nvmlInitWithFlags", 18)
    watch = watching()
    until(lambda: watch.problem() == "the NVIDIA driver was updated; restart the computer to use it")
    assert watch.samples() == []
    driver.heal("nvmlInitWithFlags")
    until(lambda: len(watch.samples()) == 1)


@pytest.mark.parametrize("code", [1, 3, 4, 13, 15, 999])
def test_no_call_takes_others_with_it(code: int, driver: FakeDriver, watching: Watching) -> None:
    """Each call of a running watch fails in turn: its own fields are n/a with a reason, memory or sensors go on."""
    watch = watching(hz=20.0)
    until(lambda: complete(watch), 8)
    sensor_calls = {
        "nvmlDeviceGetUtilizationRates": ("utilisation_ratio", "memory_utilisation_ratio"),
        "nvmlDeviceGetEncoderUtilization": ("encoder_ratio",),
        "nvmlDeviceGetPowerUsage": ("power_watts",),
        "nvmlDeviceGetEnforcedPowerLimit": ("power_limit_watts",),
        "nvmlDeviceGetClockInfo": ("sm_clock_mhz", "memory_clock_mhz"),
        "nvmlDeviceGetCurrentClocksEventReasons": ("throttle_reasons",),
        "nvmlDeviceGetTotalEccErrors": ("ecc_uncorrected_count",),
    }
    for call in sensor_calls:
        driver.fail(call, code)
    broken = {name for names in sensor_calls.values() for name in names}
    until(lambda: broken <= set(the(watch).unavailable))
    sample = the(watch)
    assert set(sample.unavailable) == broken
    assert (sample.temperature_celsius, sample.used_bytes) == (67.0, 6 * GIB)


def test_mig_slices_have_rows_of_their_own(driver: FakeDriver, watching: Watching) -> None:
    driver.devices[0].slice_count = 2
    watch = watching()
    until(lambda: complete(watch), 8)
    rows = watch.samples()
    assert [(r.index, r.mig_index, r.total_bytes) for r in rows] == [
        (0, None, 24 * GIB),
        (0, 0, 12 * GIB),
        (0, 1, 12 * GIB),
    ]
    assert rows[1].unavailable["utilisation_ratio"] == "this GPU does not tell it"


@pytest.mark.parametrize("how", ["not supported", "zero"])
def test_a_gpu_that_shares_the_computers_memory(how: str, driver: FakeDriver, watching: Watching) -> None:
    if how == "zero":
        driver.devices[0].total = driver.devices[0].used = driver.devices[0].reserved = 0
    else:
        driver.fail("nvmlDeviceGetMemoryInfo_v2", 3)
        driver.fail("nvmlDeviceGetMemoryInfo", 3)
    watch = watching()
    until(lambda: complete(watch), 8)
    sample = the(watch)
    assert (sample.memory_source, sample.total_bytes, sample.used_bytes) == ("host", 64 * GIB, 24 * GIB)


def test_processes_of_others_and_a_container_with_other_numbers(
    driver: FakeDriver, watching: Watching
) -> None:
    driver.set_processes(0, [(2**31 - 7, 5 * GIB), (1, GIB // 2)])
    sample_of = watching()
    until(lambda: complete(sample_of), 8)
    sample = the(sample_of)
    assert sample.own_bytes is None
    assert sample.unavailable["own_bytes"] == "the driver numbers processes differently than this container"
    assert sample.unaccounted_bytes == GIB // 2


def test_a_driver_that_hides_memory_by_process(driver: FakeDriver, watching: Watching) -> None:
    driver.set_processes(0, [(os.getpid(), 2**64 - 1)])
    watch = watching()
    until(lambda: complete(watch), 8)
    assert the(watch).unavailable["own_bytes"] == "the driver does not tell memory by process here"


def test_pcie_from_the_byte_counters(
    driver: FakeDriver, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_module, "PCIE_SECONDS", 0.5)
    stop = threading.Event()

    def grow() -> None:
        """100 MB/s received, 20 MB/s sent."""
        begun = time.monotonic()
        while not stop.wait(0.005):
            seconds = time.monotonic() - begun
            driver.devices[0].pcie_received = int(100e6 * seconds)
            driver.devices[0].pcie_sent = int(20e6 * seconds)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        watch = watching()
        until(lambda: (the_rate(watch) or 0) > 0)
        time.sleep(1.2)
        assert the_rate(watch) == pytest.approx(100e6, rel=0.15)
        assert the(watch).pcie_sent_bytes_per_second == pytest.approx(20e6, rel=0.15)
    finally:
        stop.set()
        thread.join()
    driver.devices[0].pcie_received = 0
    until(lambda: the_rate(watch) is None)
    assert (
        the(watch).unavailable["pcie_received_bytes_per_second"] == "the driver's byte counter started anew"
    )
    assert driver.count("nvmlDeviceGetPcieThroughput") == 0


def the_rate(watch: GpuWatch) -> float | None:
    return the(watch).pcie_received_bytes_per_second if watch.samples() else None


def test_how_often_each_question_is_asked(
    driver: FakeDriver, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in REAL.items():
        monkeypatch.setattr(gpu_module, name, seconds)
    watch = watching(hz=4.0)
    until(lambda: bool(watch.samples()) and the(watch).own_bytes is not None)
    names = (
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetComputeRunningProcesses_v3",
    )
    before = [driver.count(name) for name in names]
    time.sleep(3.0)
    memory, sensors, processes = (driver.count(n) - b for n, b in zip(names, before, strict=True))
    assert 8 <= memory <= 15  # 4 a second, and two beside a process list
    assert 4 <= sensors <= 7
    assert processes <= 2  # an empty list is one call


def test_everything_is_known_within_a_second_of_the_start(
    driver: FakeDriver, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But PCIe rates, which are differences of two readings."""
    for name, seconds in REAL.items():
        monkeypatch.setattr(gpu_module, name, seconds)
    driver.slow("nvmlInitWithFlags", 0.1)
    watch = watching(hz=4.0)
    until(lambda: bool(watch.samples()) and set(the(watch).unavailable) <= set(FIELDS["pcie"]), 1.5)


def test_every_field_belongs_to_a_question() -> None:
    fixed = {"index", "mig_index", "name", "uuid", "pci_bus_id", "driver_version", "unavailable"}
    asked = {name for names in FIELDS.values() for name in names}
    assert set(GpuSample.__dataclass_fields__) == fixed | asked


@pytest.mark.parametrize(("now", "expected"), [(0.1, 1.0), (1.0, 1.0), (1.5, 2.0), (7.3, 8.0)])
def test_a_beat_keeps_its_phase(now: float, expected: float) -> None:
    assert next_due(0.0, 1.0, now) == expected


def test_a_bug_in_a_question_is_logged_and_the_rest_goes_on(
    driver: FakeDriver, watching: Watching, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Questions, "sensors", broken)
    watch = watching()
    until(lambda: bool(watch.samples()) and the(watch).used_bytes == 6 * GIB)
    until(lambda: "watching the GPU failed" in caplog.text)


@pytest.mark.parametrize("module", ["attach", "parts", "words", "trace", "sampler"])
def test_watching_needs_neither_torch_nor_numpy(module: str) -> None:
    script = f"import sys, qlora_engine.monitor.{module}; print({{'torch', 'numpy', 'PySide6'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"
