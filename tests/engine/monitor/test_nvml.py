"""The door to NVML: true figures, and one n/a with its reason for whatever fails. Through the real nvidia-ml-py."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pynvml
import pytest

from qlora_engine.monitor.nvml import DeviceMemory, Handle, Nvml, ProcessMemory, Utilisation
from qlora_engine.monitor.nvml_words import Unavailable, throttle_words
from tests.support.fake_nvml import GIB, FakeDriver

CODES = sorted(
    {v for k, v in vars(pynvml).items() if k.startswith("NVML_ERROR_") and isinstance(v, int)} | {77}
)
"""Every error code that nvidia-ml-py names, and one that nobody knows."""


def started() -> tuple[Nvml, Handle]:
    nvml = Nvml()
    assert nvml.start(), nvml.why_not
    device = nvml.device(0)
    assert isinstance(device, Handle)
    return nvml, device


GETTERS: dict[str, tuple[Callable[[Nvml, Handle], Any], tuple[str, ...], Any]] = {
    "driver_version": (lambda n, d: n.driver_version(), ("nvmlSystemGetDriverVersion",), "580.65.06"),
    "device_count": (lambda n, d: n.device_count(), ("nvmlDeviceGetCount_v2",), 1),
    "device": (lambda n, d: n.device(0).generation, ("nvmlDeviceGetHandleByIndex_v2",), 1),
    "name": (lambda n, d: n.name(d), ("nvmlDeviceGetName",), "NVIDIA GeForce RTX 4090 #0"),
    "uuid": (lambda n, d: n.uuid(d), ("nvmlDeviceGetUUID",), "GPU-0000-0"),
    "pci_bus_id": (lambda n, d: n.pci_bus_id(d), ("nvmlDeviceGetPciInfo_v3",), "00000000:01:00.0"),
    "memory": (
        lambda n, d: n.memory(d),
        ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMemoryInfo"),
        DeviceMemory(24 * GIB, 6 * GIB, 24 * GIB - 6 * GIB - GIB // 4, GIB // 4),
    ),
    "utilisation": (
        lambda n, d: n.utilisation(d),
        ("nvmlDeviceGetUtilizationRates",),
        Utilisation(0.97, 0.41),
    ),
    "encoder": (lambda n, d: n.encoder_ratio(d), ("nvmlDeviceGetEncoderUtilization",), 0.05),
    "power": (lambda n, d: n.power_watts(d), ("nvmlDeviceGetPowerUsage",), 351.5),
    "power_limit": (lambda n, d: n.power_limit_watts(d), ("nvmlDeviceGetEnforcedPowerLimit",), 450.0),
    "temperature": (
        lambda n, d: n.temperature_celsius(d),
        ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"),
        67.0,
    ),
    "sm_clock": (lambda n, d: n.sm_clock_mhz(d), ("nvmlDeviceGetClockInfo",), 2520),
    "memory_clock": (lambda n, d: n.memory_clock_mhz(d), ("nvmlDeviceGetClockInfo",), 10501),
    "throttle": (
        lambda n, d: n.throttle_reasons(d),
        ("nvmlDeviceGetCurrentClocksEventReasons",),
        ("power limit",),
    ),
    "ecc": (lambda n, d: n.ecc_uncorrected(d), ("nvmlDeviceGetTotalEccErrors",), 3),
    "processes": (lambda n, d: n.processes(d), ("nvmlDeviceGetComputeRunningProcesses_v3",), ()),
    "pcie_counters": (lambda n, d: n.pcie_counters(d), ("nvmlDeviceGetFieldValues",), (0, 0)),
    "pcie_throughput": (
        lambda n, d: n.pcie_throughput(d),
        ("nvmlDeviceGetPcieThroughput",),
        (1_024_000.0, 2_048_000.0),
    ),
}


@pytest.mark.parametrize("name", GETTERS)
def test_each_figure_in_its_unit(name: str, driver: FakeDriver) -> None:
    getter, _, expected = GETTERS[name]
    nvml, device = started()
    found = getter(nvml, device)
    assert found == (nvml.generation if name == "device" else expected)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("name", GETTERS)
def test_every_error_of_every_call_is_one_figure_with_a_reason(
    name: str, code: int, driver: FakeDriver
) -> None:
    getter, calls, _ = GETTERS[name]
    nvml, device = started()
    for call in calls:
        driver.fail(call, code)
    if name == "device":
        found: Any = nvml.device(0)
    else:
        found = getter(nvml, device)
    assert isinstance(found, Unavailable)
    assert found.code == code
    assert len(found.reason) > 8
    assert nvml.name(device) == "NVIDIA GeForce RTX 4090 #0" or name == "name"  # the rest goes on


@pytest.mark.parametrize("code", CODES)
def test_every_error_of_the_start_is_a_reason(code: int, driver: FakeDriver) -> None:
    driver.fail("nvmlInitWithFlags", code)
    nvml = Nvml()
    assert not nvml.start()
    assert nvml.why_not
    count = nvml.device_count()
    assert isinstance(count, Unavailable)
    assert count.reason == nvml.why_not
    driver.heal("nvmlInitWithFlags")
    assert nvml.start()
    assert nvml.device_count() == 1


def test_a_machine_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", missing)
    nvml = Nvml()
    assert not nvml.start()
    assert nvml.why_not == "no NVIDIA driver is installed"


def test_an_old_package_of_the_same_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    shadow = types.ModuleType("pynvml")
    shadow.nvmlInit = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", shadow)
    nvml = Nvml()
    assert nvml.start()
    count = nvml.device_count()
    assert isinstance(count, Unavailable)
    assert count.reason == "the installed pynvml is an old package that hides nvidia-ml-py"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvml = Nvml()
    assert not nvml.start()
    assert nvml.why_not == "the package nvidia-ml-py is not installed"


def test_an_old_driver_is_asked_the_old_way(old_driver: FakeDriver) -> None:
    nvml, device = started()
    assert nvml.memory(device) == DeviceMemory(
        24 * GIB, 6 * GIB + GIB // 4, 24 * GIB - 6 * GIB - GIB // 4, None
    )
    assert nvml.temperature_celsius(device) == 67.0
    reasons = nvml.throttle_reasons(device)
    assert isinstance(reasons, Unavailable)
    assert reasons.reason == "this driver is too old to tell it"
    assert isinstance(nvml.pcie_counters(device), Unavailable)
    assert nvml.pcie_throughput(device) == (1_024_000.0, 2_048_000.0)


def test_a_name_that_is_no_text(driver: FakeDriver) -> None:
    driver.devices[0].name = b"GPU \xff\xfe"
    nvml, device = started()
    assert nvml.name(device) == "GPU \ufffd\ufffd"


def test_compute_and_graphics_processes(driver: FakeDriver) -> None:
    driver.set_processes(0, [(10, 5 * GIB), (11, 2**64 - 1), (10, 5 * GIB), (12, GIB)], graphics=2)
    nvml, device = started()
    found = nvml.processes(device)
    assert not isinstance(found, Unavailable)
    assert set(found) == {ProcessMemory(10, 5 * GIB), ProcessMemory(11, None), ProcessMemory(12, GIB)}


def test_a_figure_that_the_driver_marks_as_unknown(driver: FakeDriver) -> None:
    driver.devices[0].used = 2**64 - 1
    driver.devices[0].reserved = 0
    nvml, device = started()
    assert isinstance(nvml.memory(device), Unavailable)


def test_mig_slices(driver: FakeDriver) -> None:
    nvml, device = started()
    assert nvml.mig_devices(device) == ()
    driver.devices[0].slice_count = 3
    slices = nvml.mig_devices(device)
    assert [nvml.uuid(part) for part in slices] == ["GPU-0000-0/0", "GPU-0000-0/1", "GPU-0000-0/2"]
    memory = nvml.memory(slices[1])
    assert not isinstance(memory, Unavailable)
    assert memory.total_bytes == 8 * GIB
    for call in (
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlDeviceGetMigDeviceHandleByIndex",
    ):
        driver.fail(call, 999)
        assert nvml.mig_devices(device) == ()
        driver.heal(call)


def test_a_handle_of_an_earlier_start_never_reaches_the_driver(driver: FakeDriver) -> None:
    nvml, device = started()
    assert nvml.restart()
    found = nvml.memory(device)
    assert isinstance(found, Unavailable)
    assert found.reason == "NVML was started anew"
    assert driver.misuses == 0


@pytest.mark.parametrize("code", CODES)
def test_a_failing_shutdown_ends_all_the_same(code: int, driver: FakeDriver) -> None:
    nvml, _ = started()
    driver.fail("nvmlShutdown", code)
    assert nvml.stop()
    assert isinstance(nvml.device_count(), Unavailable)


def test_throttle_bits_in_words() -> None:
    assert throttle_words(0) == ()
    assert throttle_words(0x4 | 0x40) == ("power limit", "too warm (hardware)")
