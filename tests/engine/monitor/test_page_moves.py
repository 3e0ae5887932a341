"""Counting page moves with a stand-in for CUPTI that has the real names, numbers and record layout."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.monitor import page_moves
from qlora_engine.monitor.page_moves import PageMoves, counting, reason_of
from qlora_engine.monitor.residency import ResidencyMeter
from tests.engine.monitor.conftest import until
from tests.engine.monitor.samples import gpu_sample

FAKE = Path(__file__).resolve().parents[2] / "support" / "fake_cupti"
MIB = 1024**2
SETUP = ("subscribe", "activity_configure_unified_memory_counter", "activity_register_callbacks", "activity_enable")  # fmt: skip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="managed pages move on Linux only")


def loaded(name: str) -> bool:
    return name.partition(".")[0] in ("cupti", "cuda")


@pytest.fixture
def cupti(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, found as the real package is: by its name, on Python's path."""
    for name in [name for name in sys.modules if loaded(name)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(FAKE))
    from cupti import cupti as module

    assert Path(module.__file__).is_relative_to(FAKE)
    module.reset()
    yield module
    for name in [name for name in sys.modules if loaded(name)]:
        sys.modules.pop(name)


@pytest.fixture
def moves(cupti: Any) -> Iterator[PageMoves]:
    with counting(is_wanted=True) as found:
        assert found is not None
        assert found.why_not is None
        yield found


def test_it_sets_up_in_the_order_that_cupti_asks_for(cupti: Any, moves: PageMoves) -> None:
    assert tuple(cupti.log[:4]) == SETUP
    kinds = cupti.ActivityUnifiedMemoryCounterKind
    assert set(cupti.configured) == {
        kinds.BYTES_TRANSFER_HTOD, kinds.BYTES_TRANSFER_DTOH, kinds.GPU_PAGE_FAULT, kinds.CPU_PAGE_FAULT_COUNT,
    }  # fmt: skip


def test_records_are_folded_into_bytes_and_faults_per_second(cupti: Any, moves: PageMoves) -> None:
    kinds = cupti.ActivityUnifiedMemoryCounterKind
    began = time.monotonic()
    moves.block()
    cupti.happen(kinds.BYTES_TRANSFER_HTOD, 2 * MIB, count=3)
    cupti.happen(kinds.BYTES_TRANSFER_DTOH, 64 * 1024, count=5)
    cupti.happen(kinds.GPU_PAGE_FAULT, 7, count=2)
    cupti.happen(
        kinds.CPU_PAGE_FAULT_COUNT, 0x7F00_1234_5678, count=4
    )  # a program counter, not a number of faults
    cupti.happen(kinds.BYTES_TRANSFER_DTOD, MIB)  # neither configured nor ours
    until(lambda: moves.counts() == page_moves.Counts(6 * MIB, 320 * 1024, 14, 4))
    block = moves.block()
    seconds = time.monotonic() - began
    assert block["moving_kind"] == "measured"
    assert block["to_gpu_bytes_per_second"] >= 6 * MIB / seconds * 0.99
    assert block["to_cpu_bytes_per_second"] / block["to_gpu_bytes_per_second"] == pytest.approx(320 / 6144)
    assert block["gpu_page_faults_per_second"] / block["cpu_page_faults_per_second"] == pytest.approx(14 / 4)
    assert moves.block()["to_gpu_bytes_per_second"] == 0


def test_more_records_than_a_buffer_holds_and_records_of_others(cupti: Any, moves: PageMoves) -> None:
    kinds = cupti.ActivityUnifiedMemoryCounterKind
    cupti.enabled.add(cupti.ActivityKind.KERNEL)
    cupti.happen(kinds.BYTES_TRANSFER_HTOD, 5, activity=cupti.ActivityKind.KERNEL)
    cupti.happen(kinds.BYTES_TRANSFER_HTOD, 4096, count=15_000)
    until(lambda: moves.counts().to_gpu_bytes == 15_000 * 4096)
    assert moves.counts() == page_moves.Counts(15_000 * 4096)


def test_lost_records_make_the_figures_lower_bounds(cupti: Any, moves: PageMoves) -> None:
    cupti.lost = 1200
    until(lambda: moves.counts().lost_records == 1200)
    assert moves.block()["page_moves_reason"] == "CUPTI lost 1,200 records: the figures are the least"


def test_the_end_takes_in_what_is_on_its_way_and_lets_go(cupti: Any) -> None:
    with counting(is_wanted=True) as moves:
        assert moves is not None
        cupti.happen(cupti.ActivityUnifiedMemoryCounterKind.BYTES_TRANSFER_DTOH, MIB)
    assert moves.counts().to_cpu_bytes == MIB
    assert cupti.log[-3:] == ["activity_disable", "activity_flush_all", "unsubscribe"]
    assert not any(thread.name == "cupti-deliver" for thread in threading.enumerate())
    with counting(is_wanted=True) as again:  # a second run in the same process
        assert again is not None
        assert again.why_not is None


def test_a_second_subscriber_is_told_and_the_first_is_left_alone(cupti: Any, moves: PageMoves) -> None:
    with counting(is_wanted=True) as second:
        assert second is not None
        assert second.block() == {"page_moves_reason": "another profiler has CUPTI already"}
    assert "unsubscribe" not in cupti.log
    assert moves.block()["moving_kind"] == "measured"


@pytest.mark.parametrize("call", SETUP)
def test_every_error_of_every_call_is_a_reason_and_never_an_exception(cupti: Any, call: str) -> None:
    said = set()
    for status in (code for code in cupti.Result if code):
        cupti.reset()
        cupti.fail[call] = status
        with counting(is_wanted=True) as moves:
            assert moves is not None
            block = moves.block()
        assert set(block) == {"page_moves_reason"}
        assert block["page_moves_reason"]
        said.add(block["page_moves_reason"])
        cupti.fail.clear()
        with counting(is_wanted=True) as later:  # nothing is left subscribed
            assert later is not None
            assert later.why_not is None
    assert len(said) > 10
    assert {
        "the NVIDIA driver lets only administrators profile here",
        "this GPU cannot count page moves",
    } <= said


def test_a_driver_that_fails_in_mid_run_makes_it_na_until_it_answers_again(
    cupti: Any, moves: PageMoves
) -> None:
    cupti.fail["activity_flush_all"] = cupti.Result.ERROR_UNKNOWN
    until(lambda: "page_moves_reason" in moves.block())
    assert "CUPTI error 999" in moves.block()["page_moves_reason"]
    assert "to_gpu_bytes_per_second" not in moves.block()
    cupti.fail.clear()
    until(lambda: moves.block().get("moving_kind") == "measured")


def test_a_hanging_driver_does_not_hold_up_the_end(cupti: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_moves, "LEAVE_SECONDS", 0.2)
    stuck = threading.Event()
    with counting(is_wanted=True) as moves:
        assert moves is not None
        cupti.hang["activity_flush_all"] = stuck
        calls = len(cupti.log)
        until(lambda: len(cupti.log) > calls)
        began = time.monotonic()
    assert time.monotonic() - began < 1.0
    assert "unsubscribe" not in cupti.log
    stuck.set()


def test_without_the_package_the_gpu_or_linux_it_says_so(cupti: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import driver

    driver.result = 100
    assert started().why_not == "CUDA sees no GPU"
    driver.result = 803
    assert started().why_not == "the CUDA driver does not start: error 803"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cupti", None)
        assert started().why_not == page_moves.NO_PACKAGE
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        assert started().why_not == page_moves.ONLY_LINUX
    missing = type("NotSupportedError", (RuntimeError,), {})("CUDA driver is not found (libcuda.so.1: ...)")
    assert reason_of(missing) == page_moves.NO_DRIVER
    assert reason_of(ValueError("odd")) == "ValueError: odd"


def started() -> PageMoves:
    moves = PageMoves()
    moves.start()
    moves.stop()
    return moves


def test_nobody_asked_or_a_cpu_run(cupti: Any) -> None:
    with counting(is_wanted=False) as nothing:
        assert nothing is None
    with counting(is_wanted=True, device="cpu") as moves:
        assert moves is not None
        assert moves.block() == {"page_moves_reason": page_moves.ON_CPU}
    assert not cupti.log


def test_what_was_counted_replaces_the_estimated_rates(cupti: Any, moves: PageMoves) -> None:
    sample = gpu_sample(paged={"managed_bytes": 0, **moves.block()})
    ResidencyMeter("linux").complete(sample)
    assert sample["paged"]["moving_kind"] == "measured"
    estimated = gpu_sample(paged={"managed_bytes": 0})
    ResidencyMeter("linux").complete(estimated)
    assert estimated["paged"]["to_gpu_bytes_per_second"] == 0.0
    assert "moving_kind" not in estimated["paged"]
    counted = gpu_sample(
        paged={"managed_bytes": MIB, "to_gpu_bytes_per_second": 5.0, "to_cpu_bytes_per_second": 7.0}
    )
    ResidencyMeter("linux").complete(counted)
    assert (counted["paged"]["to_gpu_bytes_per_second"], counted["paged"]["to_cpu_bytes_per_second"]) == (
        5.0,
        7.0,
    )


def test_the_stand_in_has_the_real_names_numbers_and_layout() -> None:
    """Where cupti-python is installed, which it is on machines with a GPU."""
    real = pytest.importorskip("cupti.cupti", reason="cupti-python (extra `gpu`) is not installed here")
    fields = real.activity_unified_memory_counter3_dtype.fields
    scope: dict[str, Any] = {}
    source = (
        (FAKE / "cupti" / "cupti.py").read_text().replace("from cuda.bindings import driver", "driver = None")
    )
    exec(compile(source, "fake", "exec"), scope)
    record = scope["ActivityUnifiedMemoryCounter3"]
    assert {name: getattr(record, name).offset for name, *_ in record._fields_} == {
        name: offset for name, (_, offset) in fields.items()
    }
    for name in (
        "Result",
        "ActivityKind",
        "ActivityUnifiedMemoryCounterKind",
        "ActivityUnifiedMemoryCounterScope",
    ):
        for member in scope[name]:
            assert int(getattr(real, name)[member.name]) == int(member)
    config = real.ActivityUnifiedMemoryCounterConfig(2)
    config.scope, config.device_id, config.enable = 1, 0, 1
    config[1].kind = 4
    ours = (scope["_Config"] * 2).from_address(config.ptr)
    assert (ours[1].scope, ours[1].kind, ours[1].enable) == (1, 4, 1)
