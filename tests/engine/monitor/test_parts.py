"""The bands of the chart: they add up to what was measured, each of its kind."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qlora_engine.monitor.parts import DEVICE_PARTS, HOST_PARTS, Part, run_parts
from tests.engine.monitor.samples import GIB, MIB, cpu_sample, gpu, gpu_sample

MAYBE = st.one_of(st.none(), st.integers(0, 40 * GIB))


def test_a_gpu_run() -> None:
    assert run_parts(gpu_sample()) == (
        Part("others", GIB, "measured"),
        Part("allocated", 13 * GIB, "measured"),
        Part("reserved_free", GIB, "measured"),
        Part("context_and_rest", GIB, "measured"),
        Part("managed", 3 * GIB // 2, "accounted"),
        Part("driver", GIB // 2, "measured"),
    )


def test_an_estimated_residency_is_painted_as_one() -> None:
    sample = gpu_sample()
    sample["paged"] |= {"residency_kind": "estimated", "on_gpu_bytes": GIB, "on_cpu_bytes": GIB // 2}
    assert Part("managed", GIB, "estimated") in run_parts(sample)


def test_before_a_run_and_from_outside() -> None:
    idle = gpu_sample(paged=None, torch=None, parts=None)
    assert [p.name for p in run_parts(idle)] == ["others", "in_use", "driver"]
    hidden = gpu_sample(paged=None, torch=None, parts=None, gpus=[gpu(own_bytes=None, others_bytes=None)])
    assert run_parts(hidden) == (Part("rest", 18 * GIB, "measured"),)


def test_in_a_container_that_hides_processes_the_rest_is_not_called_the_drivers() -> None:
    sample = gpu_sample(gpus=[gpu(own_bytes=0, others_bytes=0)])
    assert [p.name for p in run_parts(sample)] == ["allocated", "reserved_free", "managed", "rest"]


def test_a_cpu_run() -> None:
    found = run_parts(cpu_sample())
    assert [p.name for p in found] == list(HOST_PARTS)
    assert found[0] == Part("quantized_weights", GIB, "accounted")
    assert found[-1] == Part("rest", GIB // 2, "measured")


def test_a_cpu_run_beside_an_idle_gpu_shows_the_computers_memory() -> None:
    assert run_parts(cpu_sample(gpus=[gpu()]))[0].name == "quantized_weights"


def test_figures_that_do_not_fit_are_cut_and_called_estimated() -> None:
    found = run_parts(cpu_sample(host={"process_resident_bytes": GIB + 10 * MIB}))
    assert found == (
        Part("quantized_weights", GIB, "accounted"),
        Part("quantization_constants", 10 * MIB, "estimated"),
    )


@given(
    used=MAYBE,
    own=MAYBE,
    others=MAYBE,
    allocated=MAYBE,
    more=st.integers(0, GIB),
    on_gpu=MAYBE,
    has_torch=st.booleans(),
)
def test_bands_always_add_up(
    used: Any, own: Any, others: Any, allocated: Any, more: int, on_gpu: Any, has_torch: bool
) -> None:
    torch = {"gpu_uuid": "0000-0", "allocated_bytes": allocated, "reserved_bytes": (allocated or 0) + more}
    sample = gpu_sample(
        gpus=[gpu(used_bytes=used, own_bytes=own, others_bytes=others)],
        torch=torch if has_torch else None,
        parts=None,
        paged={"managed_bytes": 1, "on_gpu_bytes": on_gpu},
    )
    found = run_parts(sample)
    assert sum(p.bytes_ for p in found) == (used or 0)
    assert all(p.bytes_ > 0 for p in found)
    assert [p.name for p in found] == [name for name in DEVICE_PARTS if name in {p.name for p in found}]
