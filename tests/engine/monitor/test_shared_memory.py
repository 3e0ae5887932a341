"""Windows' "shared GPU memory": the counters through a compiled stand-in for pdh.dll, and what is made of them."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.monitor import shared_memory as shared
from qlora_engine.monitor.residency import ResidencyMeter
from qlora_engine.monitor.sampler import Sampler
from qlora_engine.monitor.shared_memory import FIELD, Pdh, PdhError, SharedGpuMemory, shared_by_pid
from tests.engine.monitor.conftest import until
from tests.engine.monitor.samples import GIB, MIB, gpu_sample, host

SOURCE = Path(__file__).resolve().parents[2] / "support" / "fake_pdh.c"
LUID = "luid_0x00000000_0x0000D3A9_phys_0"
ERRORS = ("fake_open_error", "fake_add_error", "fake_collect_error", "fake_array_error")


class Row(ctypes.Structure):
    _fields_ = (("name", ctypes.c_wchar * 96), ("status", ctypes.c_uint32), ("large", ctypes.c_int64))


class FakePdh:
    """The stand-in's tables."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.rows = (Row * 64).in_dll(self.library, "fake_rows")

    def number(self, name: str) -> Any:
        return ctypes.c_uint32.in_dll(self.library, name)

    def fill(self, *rows: tuple[str, int], status: int = 0) -> None:
        for place, (name, value) in enumerate(rows):
            self.rows[place] = Row(name, status, value)
        self.number("fake_row_count").value = len(rows)

    @property
    def open_queries(self) -> int:
        return ctypes.c_int.in_dll(self.library, "fake_open_queries").value


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> FakePdh:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.name != "posix":
        pytest.skip("the stand-in for pdh.dll needs a C compiler")
    library = tmp_path_factory.mktemp("pdh") / "pdh.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", str(SOURCE), "-o", str(library)], check=True, capture_output=True
    )
    return FakePdh(library)


@pytest.fixture
def pdh(compiled: FakePdh) -> Iterator[FakePdh]:
    compiled.fill()
    for name in ERRORS:
        compiled.number(name).value = 0
    yield compiled
    assert compiled.open_queries == 0, "a query was left open"


def test_instances_are_read_as_windows_lists_them(pdh: FakePdh) -> None:
    pdh.fill((f"pid_4321_{LUID}", 3 * GIB), (f"pid_77_{LUID}", MIB), (f"pid_4321_{LUID}#1", GIB))
    query = Pdh(pdh.library)
    found = query.read()
    assert shared_by_pid(found) == {4321: 4 * GIB, 77: MIB}
    assert ctypes.c_wchar_p(ctypes.addressof(pdh.number("fake_counter"))).value == shared.COUNTER
    pdh.fill((f"pid_4321_{LUID}", GIB), status=0xC0000BBA)  # an instance whose value is not valid
    assert query.read() == []
    pdh.fill()
    assert query.read() == []  # no process uses a GPU
    query.close()


def test_a_process_that_begins_in_between_is_asked_for_again(pdh: FakePdh) -> None:
    pdh.fill((f"pid_1_{LUID}", 1), (f"pid_2_{LUID}", 2), (f"pid_3_{LUID}", 3))
    pdh.number("fake_row_count").value = 1
    pdh.number("fake_late_rows").value = 2
    query = Pdh(pdh.library)
    assert shared_by_pid(query.read()) == {1: 1, 2: 2, 3: 3}
    query.close()


def test_names_of_another_form_are_not_ours() -> None:
    names = ["_Total", "pid_x_luid_0x0_0x0_phys_0", f"luid_0x0_0x1_phys_0_pid_{7}", "", f"pid_9_{LUID}"]
    assert shared_by_pid([(name, 5) for name in names]) == {9: 5}
    assert shared_by_pid([("PID_9_LUID_0X00000000_0X0000D3A9_PHYS_0", 5)]) == {9: 5}
    assert shared_by_pid([(f"pid_9_{LUID}", -1)]) == {}


def read_once(pdh: FakePdh) -> None:
    query = Pdh(pdh.library)
    try:
        query.read()
    finally:
        query.close()


@pytest.mark.parametrize("call", ERRORS)
@pytest.mark.parametrize("code", [0xC0000BB8, 0xC0000BB9, 0xC0000BDB, 0xC0000001])
def test_every_error_of_every_call_is_a_reason(pdh: FakePdh, call: str, code: int) -> None:
    pdh.fill((f"pid_1_{LUID}", 1))
    pdh.number(call).value = code
    with pytest.raises(PdhError) as caught:
        read_once(pdh)
    assert caught.value.code == code
    assert str(caught.value)
    watch = SharedGpuMemory(pdh.library, period=0.01)
    watch.start()
    block: dict[str, Any] = host()
    until(lambda: watch.complete(block, [1]) is None and block["unavailable"][FIELD] == str(caught.value))
    assert block[FIELD] is None
    pdh.number(call).value = 0  # the counters come back
    until(lambda: watch.complete(block, [1]) is None and block[FIELD] == 1)
    watch.stop()


def test_the_sampler_tells_it_of_the_watched_processes(pdh: FakePdh) -> None:
    pdh.fill((f"pid_{os.getpid()}_{LUID}", 300 * MIB), (f"pid_1_{LUID}", GIB))
    sampler = Sampler(20.0, shared=SharedGpuMemory(pdh.library, period=0.01))
    sampler.start(own_beat=False)
    until(lambda: sampler.sample()["host"].get(FIELD) == 300 * MIB)
    sampler.stop()
    assert sampler.sample()["host"][FIELD] == 300 * MIB


def test_elsewhere_nothing_is_said() -> None:
    if sys.platform == "win32":
        pytest.skip("this is Windows")
    sampler = Sampler(20.0)
    assert FIELD not in sampler.sample()["host"]


def on_windows(shared_bytes: int, free: int, reserved: int = 14 * GIB) -> dict[str, Any]:
    sample = gpu_sample(paged={"managed_bytes": 0}, host={**host(), FIELD: shared_bytes})
    sample["gpus"][0] |= {"free_bytes": free, "used_bytes": 24 * GIB - free}
    sample["torch"]["reserved_bytes"] = reserved
    return sample


def test_only_what_comes_on_top_while_the_gpu_is_full_is_called_spilled() -> None:
    """Pinned staging memory counts as shared too, and slows nothing."""
    meter = ResidencyMeter("win32")
    sample = on_windows(400 * MIB, 8 * GIB)
    meter.complete(sample)
    assert sample["torch"]["spilled_bytes"] == 0
    sample = on_windows(400 * MIB + 3 * GIB, 200 * MIB)
    meter.complete(sample)
    assert sample["torch"]["spilled_bytes"] == 3 * GIB
    sample = on_windows(410 * MIB, 100 * MIB)
    meter.complete(sample)
    assert sample["torch"]["spilled_bytes"] == 0
    sample = on_windows(0, 0, reserved=26 * GIB)  # torch holds more than there is
    meter.complete(sample)
    assert sample["torch"]["spilled_bytes"] == 2 * GIB


@pytest.mark.skipif(sys.platform != "win32", reason="only Windows has these performance counters")
def test_windows_itself_answers() -> None:
    query = Pdh()
    for _ in range(3):
        assert all(shared_by_pid([each]) for each in query.read() if each[1] > 0)
        time.sleep(0.1)
    query.close()
