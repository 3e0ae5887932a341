"""The live memory charts in named states, in both themes and two sizes: painted to be looked at, and checked."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app import theme
from app.presenters.memory_series import MemoryFeed
from app.window import MainWindow
from tests.app import events_of_a_run as told
from tests.app import traces as given
from tests.app.conftest import MakeWindow
from tests.app.geometry import problems_of
from tests.app.test_screens import PICTURES
from tests.app.window_states import running

GIB, MIB = 1024**3, 1024**2
SECONDS = 90


def wave(at: float, least: float, most: float, every: float = 7.0) -> float:
    share = (at % every) / every
    return least + (most - least) * min(1.0, 4 * share * (1 - share))


def gpu_run(at: float, cards: int = 1, **paged: Any) -> dict[str, Any]:
    """A run whose optimizer is pushed to the CPU from the middle on, with page moves counted."""
    on_cpu = int(wave(at, 0.3, 0.45) * GIB) if at > SECONDS / 2 else 0
    found = given.gpu_sample(at, on_cpu=on_cpu)
    allocated = int(wave(at, 7.2, 9.4) * GIB)
    found["torch"] |= {"allocated_bytes": allocated, "reserved_bytes": int(9.8 * GIB)}
    found["paged"] |= {
        "residency_kind": "estimated" if at > SECONDS / 2 else "accounted",
        "to_cpu_bytes_per_second": wave(at, 0, 90e6) if on_cpu else 0.0,
        "to_gpu_bytes_per_second": wave(at + 3, 0, 80e6) if on_cpu else 0.0,
        "moving_kind": "measured", "gpu_page_faults_per_second": wave(at, 0, 900), "cpu_page_faults_per_second": 3.0,
        **paged,
    }  # fmt: skip
    first = found["gpus"][0] | {
        "used_bytes": int(23.1 * GIB) if on_cpu else int(14.9 * GIB), "own_bytes": int(10.3 * GIB),
        "utilisation_ratio": wave(at, 0.7, 0.98), "encoder_ratio": 0.05, "power_watts": wave(at, 300, 447),
        "throttle_reasons": ["power limit"], "sm_clock_mhz": int(wave(at, 2310, 2520)),
        "pcie_received_bytes_per_second": wave(at, 1e6, 9e8),
    }  # fmt: skip
    found["gpus"] = [first, *(given.gpu(n, used=2 * GIB, throttle_reasons=["idle"]) for n in range(1, cards))]
    found["host"] |= {
        "process_resident_bytes": 3 * GIB,
        "process_cpu_ratio": 1.1,
        "major_page_faults_per_second": 0.0,
    }
    return found


def unknown(at: float) -> dict[str, Any]:
    """A driver that tells next to nothing, and a place of the optimizer that cannot be told."""
    found = gpu_run(at, on_gpu_bytes=None, on_cpu_bytes=None, to_cpu_bytes_per_second=None, to_gpu_bytes_per_second=None,
                    residency_kind=None, residency_reason="this driver does not count managed memory as used",
                    moving_kind=None, gpu_page_faults_per_second=None, cpu_page_faults_per_second=None)  # fmt: skip
    names = ("utilisation_ratio", "encoder_ratio", "power_watts", "sm_clock_mhz", "throttle_reasons", "temperature_celsius",
             "pcie_received_bytes_per_second", "pcie_sent_bytes_per_second")  # fmt: skip
    found["gpus"][0] |= dict.fromkeys(names) | {"unavailable": dict.fromkeys(names, "the GPU is lost")}
    return found


def cpu_run(at: float) -> dict[str, Any]:
    return given.cpu_sample(at, int(wave(at, 180, 390) * MIB))


ESTIMATE = {
    "peak_bytes": 700 * MIB,
    "device_bytes": {"likely": 20 * GIB},
    "parts": {
        "quantized_weights": 55 * MIB, "quantization_constants": 2 * MIB, "adapters": 11 * MIB, "gradients": 11 * MIB,
        "optimizer_resident": 19 * MIB, "activations": 602 * MIB,
    },
}  # fmt: skip
STATES: dict[str, tuple[Callable[[float], Mapping[str, Any]], bool]] = {
    "before": (given.sample, False),
    "cpu": (cpu_run, True),
    "gpu": (gpu_run, True),
    "two-gpus": (lambda at: gpu_run(at, 2), True),
    "unknown": (unknown, True),
    "after": (cpu_run, False),
}


def fed(make: Callable[[float], Mapping[str, Any]]) -> MemoryFeed:
    return given.fed(*(make(n / 4) for n in range(4 * SECONDS)))


def show(window: MainWindow, make: Callable[[float], Mapping[str, Any]], *, is_live: bool) -> None:
    """The page as it is with such samples; marks and steps are those of a run of 45 steps."""
    run = window.studio.trainer.run
    if is_live and not run.is_live:
        running(window)
    if not is_live and run.is_live:
        run.fold(told.finished())
    window.studio.trainer.changed.emit()
    if run.plan is not None:
        run.plan = dataclasses.replace(run.plan, estimate={"double_quant": ESTIMATE})
    live = window.tabs.controllers["live"].memory
    live._timer.stop()
    live.feed = fed(make)
    view = window.tabs.screens["live"].charts.memory_view
    for name in list(view.small):
        view.small.pop(name).deleteLater()
    live.paint()


@pytest.mark.parametrize(("mode", "size"), [("dark", (1024, 680)), ("light", (1366, 768))])
def test_live_memory_can_be_looked_at(
    qtbot: QtBot, qapp: QApplication, make_window: MakeWindow, mode: str, size: tuple[int, int]
) -> None:
    theme.apply(qapp, mode)
    window = make_window(theme=mode)
    window.resize(*size)
    window.go_to("live")
    qtbot.waitUntil(lambda: window.tabs.screens["live"].charts is not None, timeout=20_000)
    problems = {}
    for state, (make, is_live) in STATES.items():
        show(window, make, is_live=is_live)
        qtbot.wait(120)
        with contextlib.suppress(qtbot.TimeoutError):  # a busy machine lays out late
            qtbot.waitUntil(lambda: not problems_of(window), timeout=5000)
        view = window.tabs.screens["live"].charts.memory_view
        if PICTURES:
            folder = Path(PICTURES) / mode
            folder.mkdir(parents=True, exist_ok=True)
            window.grab().save(str(folder / f"memory-{state}-{size[0]}.png"))
            view.grab().save(str(folder / f"memory-{state}-{size[0]}-charts.png"))
        problems[state] = problems_of(window)
    theme.apply(qapp, "dark")
    assert not any(problems.values()), (
        problems
    )  # after the last state: a window with a live run asks before it closes
