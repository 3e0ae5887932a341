"""Series for charts: a bounded ring, and downsampling that loses no extreme."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qlora_engine.monitor import parts, series, trace
from qlora_engine.monitor.series import DAY_AT_4_HZ, Ring, downsample
from tests.engine.monitor.samples import GIB, cpu_sample, gpu_sample
from tests.support.pace import limit

FIGURES = hnp.arrays(
    np.float32,
    st.integers(0, 400),
    elements=st.one_of(st.floats(-1e9, 1e9, width=32), st.just(float("nan"))),
)


@given(values=FIGURES, buckets=st.integers(1, 60))
@settings(max_examples=300)
def test_no_spike_is_lost(values: Any, buckets: int) -> None:
    times = np.arange(len(values), dtype=np.float64)
    curve = downsample(times, values, buckets)
    assert len(curve.times) == len(curve.values) <= max(2 * buckets, 0) or len(values) <= 2 * buckets
    assert np.all(np.diff(curve.times) > 0)
    assert np.array_equal(
        curve.values, values[curve.times.astype(int)], equal_nan=True
    )  # only what was measured
    if len(values) <= 2 * buckets:
        return
    size = -(-len(values) // buckets)
    for start in range(0, len(values), size):
        bucket = values[start : start + size]
        inside = curve.values[(curve.times >= start) & (curve.times < start + size)]
        if np.isnan(bucket).all():
            assert np.isnan(inside).all()
            assert len(inside) == 1
        else:
            assert np.nanmax(inside) == np.nanmax(bucket)
            assert np.nanmin(inside) == np.nanmin(bucket)


@given(
    capacity=st.integers(1, 50),
    rows=st.lists(
        st.dictionaries(st.sampled_from("abcd"), st.one_of(st.none(), st.floats(0, 1e6, width=32)))
    ),
)
@settings(max_examples=200)
def test_the_ring_holds_the_newest_of_each_series(capacity: int, rows: list[dict[str, Any]]) -> None:
    ring = Ring(capacity, max_series=3)
    for at, row in enumerate(rows):
        ring.append(float(at), row)
    assert len(ring) == min(capacity, len(rows))
    kept = rows[-capacity:]
    first = len(rows) - len(kept)
    for name in ring.names:
        curve = ring.curve(name, 0, len(rows), 10**6)
        assert list(curve.times) == [first + i for i in range(len(kept))]
        expected = [np.nan if row.get(name) is None else row[name] for row in kept]
        assert np.array_equal(curve.values, np.array(expected, np.float32), equal_nan=True)
    assert len(ring.names) <= 3


def test_a_window_of_time_is_cut_out() -> None:
    ring = Ring(10)
    for at in range(25):
        ring.append(float(at), {"a": at})
    assert list(ring.curve("a", 17.5, 20.0, 100).values) == [18, 19, 20]
    assert len(ring.curve("unknown", 0, 100, 10).times) == 0


def test_a_clock_that_is_set_back_keeps_the_order() -> None:
    ring = Ring(10)
    for at in (100.0, 101.0, 50.0, 51.0, 102.0):
        ring.append(at, {"a": 1.0})
    assert list(ring.curve("a", 0, 1e9, 100).times) == [100, 101, 101, 101, 102]


def test_bands_stack_up_to_what_was_measured() -> None:
    found = series.numbers(gpu_sample())
    edges = [found[f"band.{name}"] for name in parts.DEVICE_PARTS]
    assert edges == sorted(edges)
    assert edges[-1] == found["gpu0.used_bytes"]
    assert found["band.allocated"] == 14 * GIB  # 1 of others below 13 allocated
    sample = cpu_sample()
    edges = [series.numbers(sample)[f"band.{name}"] for name in parts.HOST_PARTS]
    assert edges == sorted(edges)
    assert edges[-1] == sample["host"]["process_resident_bytes"]


@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
def test_a_day_of_samples_stays_under_50_mb_and_draws_in_time(gpus: int) -> None:
    """24 h at 4 Hz with up to two GPUs; measured, not computed."""
    values = series.numbers(gpu_sample(gpus) if gpus else cpu_sample())
    tracemalloc.start()
    ring = Ring.for_gpus(gpus)
    for at in range(2000):
        ring.append(at / 4, values)
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    hours = _fill(ring) / 4 / 3600
    took = min(_timed_redraw(ring) for _ in range(7))
    print(
        f"{gpus} GPUs: {memory / 1e6:.1f} MB, {hours:.1f} h, {len(ring.names)} series, redraw {took * 1000:.1f} ms"
    )
    assert memory < 50e6
    assert not ring.dropped
    assert hours == 24 if gpus <= 2 else hours > 8
    assert took < limit(0.016, time.perf_counter)


def _fill(ring: Ring) -> int:
    """Noise with gaps in every series, the ring full and in the middle of its second round; tells how many samples."""
    series_count, capacity = ring._values.shape
    random = np.random.default_rng(1)
    ring._values[:] = random.normal(8e9, 1e9, (series_count, capacity))
    ring._values[:, ::1000] = np.nan
    ring._count = capacity + capacity // 3
    times = np.arange(ring._count) / 4
    ring._times[np.arange(ring._count) % capacity] = times
    assert len(ring) == capacity
    return capacity


def _timed_redraw(ring: Ring) -> float:
    """Everything one chart draws of the last day: the stacked parts and two lines, 1,200 pixels wide."""
    began = time.perf_counter()
    bands = [name for name in ring.names if name.startswith("band.")]
    for name in (*bands, "host.used_bytes", "paged.on_gpu_bytes"):
        ring.curve(name, 0, 1e12, 1200)
    return time.perf_counter() - began


@pytest.mark.parametrize("count", [3, 10, 25])
def test_a_ring_grows_for_series_that_come_later_and_keeps_the_newest(count: int) -> None:
    ring = Ring(10, 2)
    for at in range(count):
        ring.append(at, {"a": at, "b": -at})
    assert ring.has_room_for({"a": 1})
    assert not ring.has_room_for({"a": 1, "c": 2})
    grown = ring.with_room_for({"a", "c"})
    grown.append(count, {"a": 100, "c": 7})
    kept = list(range(max(0, count - 9), count)) if count > 9 else list(range(count))
    assert grown.curve("a", 0, 1e9, 100).values.tolist() == [*kept, 100]
    assert grown.curve("b", 0, 1e9, 100).values[:-1].tolist() == [-at for at in kept]
    assert grown.curve("c", 0, 1e9, 100).values[-1] == 7
    assert grown.oldest == kept[0]
    assert not grown.dropped


def test_a_run_on_the_cpu_of_a_computer_with_two_gpus_finds_room_within_50_mb() -> None:
    ring = Ring.for_gpus(2)
    for found in (gpu_sample(2), cpu_sample(gpus=gpu_sample(2)["gpus"])):
        values = series.numbers(found)
        ring = ring if ring.has_room_for(values) else ring.with_room_for(values)
        ring.append_sample(found)
    assert not ring.dropped
    assert {"band.allocated", "band.quantized_weights"} <= set(ring.names)
    assert ring.memory_bytes < 50e6


@pytest.mark.parametrize("sample", [cpu_sample(), gpu_sample(2)], ids=["cpu", "gpu"])
def test_the_history_draws_exactly_what_was_seen(sample: dict[str, Any]) -> None:
    live, stored = Ring(10), Ring(10)
    live.append_sample(sample)
    read_back = trace.decode(trace.encode(sample))
    assert read_back is not None
    stored.append_sample(read_back)
    assert live.names == stored.names
    for name in live.names:
        first, second = live.curve(name, 0, 1e12, 10), stored.curve(name, 0, 1e12, 10)
        assert np.array_equal(first.values, second.values, equal_nan=True)
        assert np.array_equal(first.times, second.times)


def test_what_a_chart_can_draw() -> None:
    found = series.numbers(gpu_sample(2))
    assert {
        "gpu0.used_bytes",
        "gpu1.utilisation_ratio",
        "gpu0.encoder_ratio",
        "paged.on_gpu_bytes",
        "band.allocated",
        "host.used_bytes",
    } <= set(found)
    counted = {"gpu_page_faults_per_second": 5.0, "cpu_page_faults_per_second": 2.0}
    found = series.numbers(gpu_sample(2, paged={**gpu_sample()["paged"], **counted}))
    assert found["paged.page_faults_per_second"] == 7
    assert len(found) == series.ROWS
    assert DAY_AT_4_HZ * (8 + 4 * series.ROWS) <= series.BUDGET_BYTES
