"""Compiles the stand-in for NVIDIA's library and lets a test fill its tables; nvidia-ml-py itself stays the real one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_suffix(".c")
LIBRARY = "libnvidia-ml.so.1"
GIB = 1024**3
MIB = 1024**2
PROCESSES = 64


class Process(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_uint), ("is_graphics", ctypes.c_uint), ("used", ctypes.c_ulonglong))


class Device(ctypes.Structure):
    """One GPU as the stand-in tells it: bytes, percent, milliwatts, degrees, MHz, KiB per second."""

    _fields_ = (
        *[(name, ctypes.c_ulonglong) for name in ("total", "used", "reserved", "reasons", "ecc", "pcie_received", "pcie_sent")],
        ("name", ctypes.c_char * 96),
        ("uuid", ctypes.c_char * 80),
        ("bus", ctypes.c_char * 32),
        *[
            (name, ctypes.c_uint)
            for name in (
                "gpu_percent", "memory_percent", "encoder_percent", "power_milliwatts", "limit_milliwatts", "celsius",
                "sm_mhz", "memory_mhz", "throughput_kib", "process_count", "slice_count", "is_lost",
            )
        ],
        ("processes", Process * PROCESSES),
    )  # fmt: skip


class Call(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 64),
        ("error", ctypes.c_int),
        ("delay_ms", ctypes.c_int),
        ("device", ctypes.c_int),
        ("hangs", ctypes.c_int),
        ("count", ctypes.c_int),
    )


def compiled(folder: Path, *flags: str) -> Path:
    """The library, built with the system's compiler; skips where there is none."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.name != "posix":
        pytest.skip("the stand-in driver needs a C compiler")
    folder.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-shared", "-fPIC", "-O1", *flags, str(SOURCE), "-o", str(folder / LIBRARY)]
    subprocess.run(command, check=True, capture_output=True)
    return folder / LIBRARY


class FakeDriver:
    """The tables of a loaded stand-in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        count = ctypes.c_int.in_dll(self.library, "fake_call_count").value
        self._calls = {call.name.decode(): call for call in (Call * count).in_dll(self.library, "fake_calls")}
        self.devices = (Device * 8).in_dll(self.library, "fake_devices")

    @property
    def call_names(self) -> tuple[str, ...]:
        return tuple(self._calls)

    @property
    def misuses(self) -> int:
        """How often a handle of an earlier start was used."""
        return ctypes.c_int.in_dll(self.library, "fake_misuses").value

    @property
    def starts(self) -> int:
        return ctypes.c_int.in_dll(self.library, "fake_start").value

    def reset(self, gpus: int = 1) -> None:
        """`gpus` RTX 4090 with 24 GiB, 6 GiB in use, nothing failing."""
        for name in self._calls:
            self.heal(name)
            self._calls[name].count = 0
        ctypes.c_uint.in_dll(self.library, "fake_device_count").value = gpus
        ctypes.c_int.in_dll(self.library, "fake_misuses").value = 0
        ctypes.c_int.in_dll(self.library, "fake_is_started").value = 0
        for index in range(len(self.devices)):
            self.devices[index] = Device(
                total=24 * GIB, used=6 * GIB, reserved=GIB // 4, reasons=0x4, ecc=3,
                name=f"NVIDIA GeForce RTX 4090 #{index}".encode(), uuid=f"GPU-0000-{index}".encode(),
                bus=f"00000000:0{index + 1}:00.0".encode(), gpu_percent=97, memory_percent=41, encoder_percent=5,
                power_milliwatts=351_500, limit_milliwatts=450_000, celsius=67, sm_mhz=2520, memory_mhz=10501,
                throughput_kib=1000,
            )  # fmt: skip

    def set_processes(self, index: int, processes: Sequence[tuple[int, int]], *, graphics: int = 0) -> None:
        """(pid, bytes) of each; the last `graphics` of them are graphics processes."""
        device = self.devices[index]
        for row, (pid, used) in enumerate(processes):
            device.processes[row] = Process(pid, int(row >= len(processes) - graphics), used)
        device.process_count = len(processes)

    def fail(self, name: str, code: int, device: int = -1) -> None:
        self._calls[name].error, self._calls[name].device = code, device

    def slow(self, name: str, seconds: float) -> None:
        self._calls[name].delay_ms = round(seconds * 1000)

    def hang(self, name: str) -> None:
        self._calls[name].hangs = 1

    def heal(self, name: str) -> None:
        """Let go of what hangs, and no more errors or delays."""
        call = self._calls[name]
        call.error, call.delay_ms, call.device, call.hangs = 0, 0, -1, 0

    def count(self, name: str) -> int:
        return int(self._calls[name].count)


@contextlib.contextmanager
def bound(driver: FakeDriver) -> Iterator[FakeDriver]:
    """nvidia-ml-py bound to the stand-in, and to what it was before afterwards."""
    import pynvml

    before: tuple[Any, ...] = (pynvml.nvmlLib, pynvml._nvmlGetFunctionPointer_cache)
    pynvml.nvmlLib, pynvml._nvmlGetFunctionPointer_cache = driver.library, {}
    driver.reset()
    try:
        yield driver
    finally:
        for name in driver.call_names:
            driver.heal(name)
        pynvml.nvmlLib, pynvml._nvmlGetFunctionPointer_cache = before
