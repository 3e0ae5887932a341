"""What the charts of memory are fed: samples, the parts of what is used, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.presenters import memory_series as memory
from app.presenters import small_charts as small
from app.presenters.memory_series import MemoryFeed, Prediction
from qlora_engine.monitor.series import DAY_AT_4_HZ
from tests.app.traces import (
    BEGAN,
    GIB,
    MIB,
    cpu_sample,
    everything,
    fed,
    gpu,
    gpu_sample,
    host,
    sample,
    write,
)


def test_every_sample_of_the_trace_is_taken_and_the_windows_own_fill_what_is_between(tmp_path: Path) -> None:
    feed = MemoryFeed()
    for n in range(8):
        feed.add_idle(sample(n / 4))
    path = write(tmp_path / "memory.jsonl", *(cpu_sample(3 + n / 4) for n in range(100)))
    feed.follow(*memory.tail_since(path, BEGAN))
    feed.add_idle(sample(28.0))  # the run told something at 27.75
    write(path, *(cpu_sample(28 + n / 4) for n in range(100)))
    counts = []
    while count := feed.poll():
        counts.append(count)
    assert counts == [memory.POLLED, 100 - memory.POLLED]
    feed.leave()
    feed.add_idle(sample(60.0))
    assert feed.ring is not None
    assert len(feed.ring) == 8 + 100 + 100 + 1
    times = feed.ring.curve("host.used_bytes", *everything(feed), 10_000).times
    assert (np.diff(times) >= 0).all()
    assert len(times) == 209


def test_a_resumed_run_is_followed_from_where_it_went_on(tmp_path: Path) -> None:
    path = write(tmp_path / "memory.jsonl", *(cpu_sample(n) for n in range(50)))
    tail, samples = memory.tail_since(path, BEGAN + 40)
    assert [s["time"] for s in samples] == [BEGAN + n for n in range(40, 50)]
    write(path, cpu_sample(50))
    assert [s["time"] for s in tail.new()] == [BEGAN + 50]


def test_a_trace_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "run" / "memory.jsonl"
    feed = MemoryFeed()
    feed.follow(*memory.tail_since(path, BEGAN))
    assert feed.poll() == 0
    write(path, cpu_sample(0))
    assert feed.poll() == 1


def test_a_day_of_two_gpus_stays_within_50_megabytes() -> None:
    cards = [gpu(0, uuid="GPU-0"), gpu(1, uuid="GPU-1")]
    feed = fed({**gpu_sample(0), "gpus": [gpu_sample(0)["gpus"][0], cards[1]]})
    assert feed.ring is not None
    assert feed.ring.memory_bytes < 50_000_000
    assert not feed.ring.dropped
    assert feed.ring.curve("gpu1.power_watts", *everything(feed), 10).values[0] == 250
    assert len(feed.ring._times) == DAY_AT_4_HZ


def test_a_cpu_run_shows_the_engines_parts_and_says_what_is_not_drawn() -> None:
    feed = fed(*(cpu_sample(n) for n in range(10)))
    picture = memory.memory_picture(feed, everything(feed), 500, Prediction(500 * MIB, None), is_live=True)
    assert [band.name for band in picture.bands] == ["quantized_weights", "adapters", "activations"]
    assert picture.title == "Memory of the engine, GiB"
    assert picture.level_bytes == 500 * MIB
    assert picture.bands[-1].curve.values[-1] == pytest.approx(360 * MIB / GIB)
    assert picture.note == "+ 1.65 libraries and rest, not in the estimate"


def test_before_a_run_the_computer_is_shown_with_the_predicted_peak_on_top_of_it() -> None:
    feed = MemoryFeed()
    feed.add_idle(sample(0))
    picture = memory.memory_picture(feed, everything(feed), 500, Prediction(GIB, 2 * GIB), is_live=False)
    assert [band.name for band in picture.bands] == ["used"]
    assert picture.level_bytes == 17 * GIB


def test_a_gpu_run_shows_its_parts_below_the_device_peak_with_what_others_use() -> None:
    feed = fed(*(gpu_sample(n) for n in range(10)))
    picture = memory.memory_picture(feed, everything(feed), 500, Prediction(9 * GIB, 10 * GIB), is_live=True)
    names = [band.name for band in picture.bands]
    assert (
        names
        == ["others", "allocated", "reserved_free", "context_and_rest", "managed", "driver"][: len(names)]
    )
    assert names[-1] in ("managed", "driver")
    assert picture.bands[-1].curve.values[-1] == pytest.approx(12.0)
    assert picture.level_bytes == 11 * GIB
    assert sum(band.latest_bytes or 0 for band in picture.bands) == pytest.approx(12 * GIB)


def test_a_runs_prediction_is_the_side_that_it_was_planned_by() -> None:
    sides = {
        "double_quant": {"peak_bytes": 5, "parts": {"adapters": 1}, "device_bytes": {"likely": 7}},
        "single_quant": {"peak_bytes": 6, "parts": {"adapters": 2}, "device_bytes": {"likely": 9}},
    }
    assert Prediction.of_plan(6, sides) == Prediction(6, 9, {"adapters": 2})
    assert Prediction.of_plan(5, sides) == Prediction(5, 7, {"adapters": 1})
    assert Prediction.of_plan(4, sides) == Prediction(4)
    assert Prediction.of_plan(None, None) == Prediction()
    grouping = {**sides, "grouped_experts_bytes": 20}
    assert Prediction.of_plan(25, grouping) == Prediction(25, 27, {"adapters": 1, "activations": 20})
    keeping = {**sides, "kept_weights_bytes": 30}
    assert Prediction.of_plan(35, keeping) == Prediction(35, 37, {"adapters": 1, "unquantized_weights": 30})
    assert Prediction.of_plan(6, keeping) == Prediction(
        6, 9, {"adapters": 2}
    )  # there was no room to keep them


def test_paged_memory_is_split_by_place_or_says_why_it_cannot_be() -> None:
    feed = fed(gpu_sample(0), gpu_sample(1, on_cpu=GIB // 4))
    picture = memory.paged_picture(feed, everything(feed), 100)
    assert [(band.name, band.latest_bytes) for band in picture.bands] == [
        ("on_gpu", 0.75 * GIB),
        ("on_cpu", 0.25 * GIB),
    ]
    assert picture.note == "Estimated: from the device's use"
    unknown = gpu_sample(0)
    unknown["paged"] |= {"on_gpu_bytes": None, "on_cpu_bytes": None, "residency_reason": "no baseline"}
    feed = fed(unknown)
    picture = memory.paged_picture(feed, (BEGAN - 1, BEGAN + 1), 100)
    assert [band.name for band in picture.bands] == ["managed"]
    assert picture.note == "Where it is: n/a (no baseline)"
    assert memory.paged_picture(fed(cpu_sample(0)), (BEGAN - 1, BEGAN + 1), 100).bands == ()


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 700), buckets=st.integers(32, 100), at=st.integers(0, 699), size=st.integers(1, 64)
)
def test_no_spike_is_lost_in_the_picture(count: int, buckets: int, at: int, size: int) -> None:
    at %= count
    spike, usual = (100 + size * 1024) * MIB, 100 * MIB
    feed = fed(*(cpu_sample(n / 4, spike if n == at else usual, 100 * GIB) for n in range(count)))
    picture = memory.memory_picture(feed, everything(feed), buckets, Prediction(), is_live=True)
    top = picture.bands[-1].curve
    assert float(top.values.max()) == pytest.approx(size + 160 / 1024, rel=1e-5)
    assert len(top.values) <= max(2 * buckets, 2 * 32) + 2


def test_an_unknown_figure_is_na_with_its_reason() -> None:
    card = gpu(power_watts=None, unavailable={"power_watts": "this GPU does not tell it"})
    charts = {chart.name: chart for chart in small.gpu_charts(card, has_memory=False)}
    found = small.small_reading(charts["gpu0.power"], sample(0, gpus=[card]))
    assert (found.text, found.tip) == ("n/a", "this GPU does not tell it")
    assert small.small_reading(charts["gpu0.heat"], sample(0, gpus=[card])).text == "61\u00a0\u00b0C"
    found = small.small_reading(charts["gpu0.heat"], sample(0))
    assert (found.text, found.tip) == ("n/a", "no NVIDIA driver is installed")
    cores = small.HOST_CHARTS[2]
    assert small.small_reading(cores, sample(0)).tip == "no engine is running"
    assert small.small_reading(cores, cpu_sample(0)).text == "1.8\u00a0cores"


def tips(card: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """(newest values, tooltip) of a GPU's charts, by the last part of their names."""
    found = ((c.name.split(".")[1], small.small_reading(c, sample(0, gpus=[card]))) for c in small.gpu_charts(card, has_memory=False))  # fmt: skip
    return {name: (reading.text, reading.tip) for name, reading in found}


def test_clocks_what_holds_them_back_and_the_encoder_are_shown() -> None:
    found = tips(gpu(encoder_ratio=0.25, memory_utilisation_ratio=0.4))
    assert found["use"] == ("50, encoder 25\u00a0%", "Memory controller: 40\u00a0%\nVideo encoder: 25\u00a0%")
    assert found["clock"] == ("2,520\u00a0MHz", "Memory clock: 10,501 MHz\nNot held back")
    held = tips(gpu(throttle_reasons=["power limit", "too warm (driver)"]))["clock"]
    assert held == (
        "2,520\u00a0MHz \u25bc",
        "Memory clock: 10,501 MHz\nHeld back by: power limit, too warm (driver)",
    )
    assert tips(gpu(throttle_reasons=["idle"]))["clock"][0] == "2,520\u00a0MHz"
    no = {"encoder_ratio": "this GPU does not tell it", "throttle_reasons": "too old"}
    unknown = tips(gpu(encoder_ratio=None, throttle_reasons=None, unavailable=no))
    assert unknown["use"][0] == "50\u00a0%"
    assert "Video encoder: n/a (this GPU does not tell it)" in unknown["use"][1]
    assert "What holds it back: n/a (too old)" in unknown["clock"][1]


def test_the_hosts_charts_tell_the_engines_share_and_the_control_groups_limit() -> None:
    block = host(
        process_resident_bytes=3 * GIB, process_shared_bytes=GIB // 2, process_swap_bytes=0, cgroup_limit_bytes=32 * GIB,
        cgroup_used_bytes=5 * GIB, page_faults_per_second=1250.0, major_page_faults_per_second=7.0,
    )  # fmt: skip
    taken = sample(0, host=block)
    charts = {chart.name: small.small_reading(chart, taken) for chart in small.HOST_CHARTS}
    assert charts["host"].text == "16.00\u00a0GiB of 64.00"
    for line in ("Engine, resident: 3.00\u00a0GiB", "of it shared with others: 0.50\u00a0GiB", "Engine, swapped out: 0.00\u00a0GiB",
                 "Limit of the control group: 32.00\u00a0GiB", "Used in the control group: 5.00\u00a0GiB"):  # fmt: skip
        assert line in charts["host"].tip
    assert charts["faults"].text == "7\u00a0/s"
    assert charts["faults"].tip.endswith("1,250/s")


def test_page_moves_say_whether_they_were_counted() -> None:
    estimated = gpu_sample(0)
    assert small.small_reading(small.PAGES_CHART, estimated).tip.startswith("Estimated from")
    no = {**estimated, "paged": {**estimated["paged"], "page_moves_reason": "no package"}}
    assert small.small_reading(small.PAGES_CHART, no).tip.endswith("Not counted: no package")
    counted = {
        **estimated["paged"],
        "moving_kind": "measured", "gpu_page_faults_per_second": 30.0, "cpu_page_faults_per_second": 4.0,
    }  # fmt: skip
    taken = {**estimated, "paged": counted}
    assert small.small_reading(small.PAGES_CHART, taken).tip == "Measured by the driver"
    found = small.small_reading(small.MOVES_CHART, taken)
    assert (found.text, found.tip) == ("34\u00a0/s", "By the GPU: 30/s\nBy the CPU: 4/s")
