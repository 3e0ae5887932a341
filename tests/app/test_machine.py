"""The window's own look at the machine: a driver that hangs is nobody's business but its own thread's."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from PySide6.QtCore import Qt, QTimer
from pytestqt.qtbot import QtBot

from app.services.machine import Machine
from tests.bench import ui_gaps
from tests.bench.ui_gaps import waited_ms
from tests.support import fake_nvml


@pytest.mark.parametrize("call", ["nvmlInitWithFlags", "nvmlDeviceGetMemoryInfo_v2"])
def test_a_driver_call_stuck_for_two_seconds_delays_no_turn_of_the_event_loop(
    qtbot: QtBot, tmp_path: Path, call: str
) -> None:
    """Gaps of the loop as `make bench-ui` counts them, without what the thread waited for a processor."""
    driver = fake_nvml.FakeDriver(fake_nvml.compiled(tmp_path))
    with fake_nvml.bound(driver):
        driver.hang(call)
        machine, gaps, told = Machine(), [], []
        machine.sampled.connect(lambda: told.extend(machine.fresh))
        last = [time.perf_counter(), waited_ms()]

        def turn() -> None:
            now, waited = time.perf_counter(), waited_ms()
            gaps.append(1000 * (now - last[0]) - 10 - (waited - last[1]))
            last[:] = now, waited

        beat = QTimer(interval=10, timerType=Qt.TimerType.PreciseTimer)
        beat.timeout.connect(turn)
        machine.start()
        beat.start()
        qtbot.wait(2000)
        beat.stop()
        began = time.perf_counter()
        machine.stop()
        stopped = time.perf_counter() - began
        driver.heal(call)
        qtbot.waitUntil(
            lambda: not any(t.name.startswith("nvml-") for t in threading.enumerate()), timeout=5000
        )
    print(f"{call} stuck: longest gap {max(gaps):.0f} ms of {len(gaps)} turns, {len(told)} samples, stop {1000 * stopped:.0f} ms")  # fmt: skip
    assert len(gaps) > 80
    assert max(gaps) < 100
    assert len(told) >= 5
    assert stopped < 0.8


def test_the_bench_names_each_long_gap_and_what_of_it_was_waiting_for_a_processor() -> None:
    beats = [(2.0, 0.0)] * 400 + [(250.0, 248.0)]
    gaps = ui_gaps.Gaps.of(beats, 4.2)
    assert (gaps.beats, gaps.most_ms, gaps.percentile_99_ms, gaps.over_100_ms, gaps.most_own_ms) == (
        401,
        250.0,
        2.0,
        1,
        2.0,
    )
    assert not gaps.is_kept
    assert ui_gaps.Gaps.of(beats[:-1], 4.0).is_kept
    long = (ui_gaps.LongGap(4.1, 250.0, 248.0),)
    text = ui_gaps.words(ui_gaps.Report(gaps, gaps, gaps, 3, 90.0, 17, 1.2, "offscreen", long))
    assert "- 250 ms after 4 s, 248 ms of it waiting for a processor" in text
    assert "NOT kept" in text


def test_the_timer_of_the_bench_sees_a_gap(qtbot: QtBot) -> None:
    beat = ui_gaps.Beat()
    beat.start()
    qtbot.wait(60)
    time.sleep(0.15)
    qtbot.wait(60)
    beat.stop()
    (gap,) = [gap for gap in beat.long if gap.late_ms - gap.waited_ms > 100]
    assert gap.late_ms >= 130
