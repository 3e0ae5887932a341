"""The window's own look at the machine: a driver that hangs is nobody's business but its own thread's."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from PySide6.QtCore import Qt, QTimer
from pytestqt.qtbot import QtBot

from app.services.machine import Machine
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
