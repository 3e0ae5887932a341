"""The live charts: what is drawn, by hand and mouse, and what it costs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PySide6.QtCore import QEvent, QPoint, QPointF, Qt
from PySide6.QtGui import QColor, QMouseEvent, QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app import theme
from app.controllers.capacity import next_run, next_verdict
from app.presenters.memory_series import MemoryFeed, Prediction, predicted_parts
from app.presenters.run_marks import Mark
from app.presenters.strip import strip_state
from app.presenters.words import number_text
from app.widgets.run_charts import MemoryView
from app.widgets.time_scale import time_text
from app.window import MainWindow
from qlora_engine import events as ev
from qlora_engine.jobs import TrainJob
from qlora_engine.monitor.series import DAY_AT_4_HZ
from qlora_engine.runs.record import RunFolder
from tests.app import events_of_a_run as told
from tests.app.conftest import MakeWindow, engine_of
from tests.app.traces import (
    BEGAN,
    GIB,
    MIB,
    cpu_sample,
    everything,
    fed,
    gpu,
    gpu_sample,
    is_near,
    pixels,
    sample,
    write,
)
from tests.support.pace import limit

PARTS = {
    "quantized_weights": 60 * MIB, "adapters": 10 * MIB, "optimizer_resident": 5 * MIB, "optimizer_pageable": 15 * MIB,
    "activations": 300 * MIB, "step_temporary": 50 * MIB, "device_context": 0,
}  # fmt: skip


def test_the_estimates_parts_are_the_legend_before_a_run_and_stand_beside_the_figures_in_one(
    qtbot: QtBot, view: MemoryView
) -> None:
    parts = predicted_parts(PARTS)
    assert parts == {
        "quantized_weights": 60 * MIB,
        "adapters": 10 * MIB,
        "optimizer": 20 * MIB,
        "activations": 350 * MIB,
    }
    view.show_feed(fed(sample(0), sample(1)), Prediction(440 * MIB, None, parts), is_live=False)
    panel = view.memory
    assert {name: figure.text() for name, (_, figure) in panel._parts.items()} == {
        "quantized_weights": "0.06", "adapters": "0.01", "optimizer": "0.02", "activations": "0.34",
    }  # fmt: skip
    assert "Activations, temporary: 0.34\u00a0GiB" in panel._level_name.toolTip()
    assert panel._level_name.text() == "- - With the next run", "what is in use now is in it"
    view.show_feed(fed(cpu_sample(0), cpu_sample(1)), Prediction(440 * MIB, None, parts), is_live=True)
    assert not panel._parts
    assert panel._level_name.text() == "- - Predicted peak"
    assert panel._lines["activations"][1].text() == "0.29 of 0.34"


def test_what_is_drawn_never_changes_the_place_of_the_other_charts(qtbot: QtBot, view: MemoryView) -> None:
    """A panel that grows moves and repaints every chart of the page at once."""
    heights = set()
    parts = predicted_parts(PARTS)
    for feed, predicted, is_live in (
        (fed(sample(0), sample(1)), Prediction(440 * MIB, None, parts), False),
        (fed(cpu_sample(0), cpu_sample(1)), Prediction(440 * MIB, None, parts), True),
        (fed(cpu_sample(0), cpu_sample(1)), Prediction(), True),
        (fed(gpu_sample(0), gpu_sample(1)), Prediction(9 * GIB, 10 * GIB), True),
    ):
        view.show_feed(feed, predicted, is_live=is_live)
        QApplication.processEvents()
        heights.add(view.memory.minimumSizeHint().height())
    assert len(heights) == 1


def test_an_estimate_is_hatched_and_marked_and_a_measurement_is_not(qtbot: QtBot, view: MemoryView) -> None:
    view.show_feed(fed(gpu_sample(0), gpu_sample(1, on_cpu=GIB // 4)), Prediction(), is_live=True)
    layers = {layer.name: layer.is_estimated for layer in view.memory.chart._layers}
    assert layers["managed"]
    assert not layers["allocated"]
    title, figure = view.paged._lines["on_cpu"]
    assert figure.text() == "\u2248 0.25"
    assert title.toolTip().startswith("Estimated")
    assert view.memory._lines["allocated"][1].text() == "8.00"
    assert view.memory._lines["allocated"][0].toolTip() == "Measured"
    sure = gpu_sample(2)
    sure["paged"] |= {"residency_kind": "accounted"}
    view.show_feed(fed(sure), Prediction(), is_live=True)
    assert not any(layer.is_estimated for layer in view.memory.chart._layers)
    assert view.paged._lines["on_gpu"][1].text() == "1.00"


@pytest.fixture
def view(qtbot: QtBot) -> Iterator[MemoryView]:
    found = MemoryView()
    qtbot.addWidget(found)
    found.resize(1100, 700)
    found.show()
    yield found
    found.hide()


def test_lower_bands_hide_the_higher_ones_and_the_prediction_is_dashed_over_all(qtbot: QtBot, view: MemoryView) -> None:  # fmt: skip
    feed = fed(*(cpu_sample(n) for n in range(300)))
    view.show_feed(feed, Prediction(720 * MIB, None), is_live=True)
    chart = view.memory.chart
    image, plot = pixels(chart), chart._plot
    top = chart._top
    x = int(plot.left() + plot.width() * 0.9)
    colours = {}
    for name, middle in (("quantized_weights", 25), ("activations", 200)):
        y = plot.bottom() - plot.height() * (middle / 1024) / top
        colours[name] = image.pixelColor(x, int(y))
    for name, found in colours.items():
        hue = theme.part_colour(name).hslHueF()
        assert abs(found.hslHueF() - hue) < 0.06, name
    y = round(plot.bottom() - plot.height() * (720 / 1024) / top)
    dashes = [
        is_near(image.pixelColor(i, y), QColor(theme.tokens().text)) for i in range(int(plot.left()), x)
    ]
    assert 0.3 < sum(dashes) / len(dashes) < 0.95


def test_redraw_of_a_full_day_takes_less_than_a_frame(qtbot: QtBot, view: MemoryView) -> None:
    feed = MemoryFeed()
    feed.add({**gpu_sample(0), "gpus": [gpu_sample(0)["gpus"][0], gpu(1)]})
    assert feed.ring is not None
    ring = feed.ring
    ring._times[:] = BEGAN + np.arange(DAY_AT_4_HZ) / 4
    wobble = 1 + 0.1 * np.random.default_rng(4).random(DAY_AT_4_HZ, np.float32)
    bands = [name for name in ring.names if name.startswith("band.")]
    for name, place in ring._rows.items():
        ring._values[place] = wobble * GIB * (1 + bands.index(name) if name in bands else 1)
    ring._count = DAY_AT_4_HZ
    feed.newest = BEGAN + DAY_AT_4_HZ / 4
    marks = [Mark(BEGAN + 600.0 * n, "checkpoint", "checkpoint at step 5") for n in range(140)]
    took = {}
    for span in (60.0, 600.0, None):
        view.axis.show_span(span)
        view.show_feed(feed, Prediction(GIB, GIB), is_live=True, marks=marks)
        QApplication.processEvents()
        beats = []
        for _ in range(160):
            began = time.thread_time()  # what it costs, whatever else the computer does
            view.show_feed(feed, Prediction(GIB, GIB), is_live=True, marks=marks)
            view.memory.chart.repaint()
            beats.append(1000 * (time.thread_time() - began))
        # The small charts take turns, four beats for all: each turn at its least disturbed, and of these the slowest.
        took[span] = float(np.array(beats).reshape(-1, 4).min(axis=0).max())
    print({span: round(value, 2) for span, value in took.items()})
    assert max(took.values()) < limit(16)


def test_the_wheel_zooms_around_the_mouse_and_the_crosshair_is_shared(qtbot: QtBot, view: MemoryView) -> None:
    view.show_feed(fed(*(cpu_sample(n) for n in range(600))), Prediction(), is_live=True)
    chart = view.memory.chart
    place = QPointF(chart._plot.center())
    before = view.axis.window
    under = chart.time_at(place.x())
    QApplication.sendEvent(
        chart,
        QWheelEvent(place, chart.mapToGlobal(place), QPoint(), QPoint(0, 240), Qt.MouseButton.NoButton, Qt.KeyboardModifier.ControlModifier, Qt.ScrollPhase.NoScrollPhase, False),
    )  # fmt: skip
    after = view.axis.window
    assert after[1] - after[0] == pytest.approx((before[1] - before[0]) / 1.25**2)
    assert chart.time_at(place.x()) == pytest.approx(under, abs=1e-3)
    assert view.pause.text() == "Follow again"
    assert view.spans.value == ""
    no = Qt.MouseButton.NoButton
    QApplication.sendEvent(
        chart, QMouseEvent(QEvent.Type.MouseMove, place, chart.mapToGlobal(place), no, no, Qt.KeyboardModifier.NoModifier)
    )  # fmt: skip
    assert view.axis.cursor == pytest.approx(under, abs=1e-3)
    assert view.memory.reading.text() == f"{time_text(under - BEGAN)}: 0.35\u00a0GiB"
    assert view.small["cores"].value.text() == "1.8\u00a0cores"
    qtbot.mouseClick(view.pause, Qt.MouseButton.LeftButton)
    assert view.axis.is_following


def test_time_buttons_choose_the_window(qtbot: QtBot, view: MemoryView) -> None:
    view.show_feed(fed(*(cpu_sample(n) for n in range(2000))), Prediction(), is_live=True)
    for name, span in (("minute", 60), ("all", 1999), ("ten", 600)):
        qtbot.mouseClick(view.spans._buttons[name], Qt.MouseButton.LeftButton)
        start, end = view.axis.window
        assert end - start == pytest.approx(span)
        assert view.spans.value == name
    qtbot.mouseClick(view.pause, Qt.MouseButton.LeftButton)
    assert not view.axis.is_following


def test_gpus_get_a_row_each_and_a_computer_without_says_why(qtbot: QtBot, view: MemoryView) -> None:
    view.show_feed(fed(cpu_sample(0)), Prediction(), is_live=True)
    assert set(view.small) == {"host", "swap", "cores", "faults"}
    assert (view.no_gpu.text(), view.no_gpu.toolTip()) == ("GPU n/a", "no NVIDIA driver is installed")
    cards = [gpu(0), gpu(1, power_watts=None, unavailable={"power_watts": "not told"})]
    view.show_feed(fed(sample(0, gpus=cards, gpu_problem=None)), Prediction(), is_live=False)
    assert len(view.small) == 4 + 2 * 6
    assert view.no_gpu.text() == ""
    assert view.small["gpu1.power"].value.text() == "n/a"
    assert view.small["gpu1.power"].toolTip() == "not told"
    view.show_feed(fed(sample(0, gpus=cards[:1], gpu_problem=None)), Prediction(), is_live=False)
    assert view.small["gpu1.heat"].value.text() == "n/a"


def test_paged_memory_is_drawn_when_there_is_any_and_said_in_words_when_not(qtbot: QtBot, view: MemoryView) -> None:  # fmt: skip
    view.show_feed(fed(cpu_sample(0), cpu_sample(1)), Prediction(), is_live=True)
    view.say_paging("on the CPU nothing is paged")
    assert not view.paged.isVisible()
    assert view.paging_words.isVisible()
    view.show_feed(fed(gpu_sample(0), gpu_sample(1, on_cpu=GIB // 2)), Prediction(), is_live=True)
    view.say_paging("on the CPU nothing is paged")
    assert view.paged.isVisible()
    assert not view.paging_words.isVisible()
    assert view.pages.value.text() == "to CPU 95, to GPU 0\u00a0MiB/s"
    assert not view.moves.isVisible()
    counted = gpu_sample(2)
    counted["paged"] |= {"moving_kind": "measured", "gpu_page_faults_per_second": 5.0}
    view.show_feed(fed(counted), Prediction(), is_live=True)
    assert view.moves.isVisible()
    assert view.moves.value.text() == "5\u00a0/s"


def live_window(qtbot: QtBot, make_window: MakeWindow) -> MainWindow:
    window = make_window()
    window.resize(1380, 880)
    window.go_to("live")
    qtbot.waitUntil(lambda: window.tabs.screens["live"].charts is not None, timeout=30_000)
    return window


def test_the_chart_lives_before_during_and_after_a_run(
    qtbot: QtBot, home: Path, make_window: MakeWindow
) -> None:
    window = live_window(qtbot, make_window)
    live = window.tabs.controllers["live"].memory
    view = window.tabs.screens["live"].charts.memory_view
    now = time.time()
    machine = window.studio.machine

    def tell(at: float) -> None:
        machine.fresh = ({**sample(0), "time": now + at},)
        machine.sampled.emit()

    tell(0)
    qtbot.waitUntil(lambda: view.memory.title.text() == "Memory of this computer, GiB")
    assert "the next run is predicted to need" in view.memory_line.text()
    assert "nothing is paged" in view.paging_words.text()
    qtbot.waitUntil(window.card.start.isEnabled, timeout=10_000)
    window.steering.start()
    engine = engine_of(qtbot, TrainJob)
    run_dir = home / "runs" / "demo"
    path = write(run_dir / "memory.jsonl", {**cpu_sample(0), "time": now + 1})
    begin = dataclasses.replace(told.started(str(run_dir)), unix_time=now)
    engine.tell(
        begin, told.plan(predicted=700 * MIB), dataclasses.replace(told.evaluation(0, 3.1), unix_time=now + 1)
    )
    qtbot.waitUntil(lambda: view.memory.title.text() == "Memory of the engine, GiB", timeout=10_000)
    write(path, *({**cpu_sample(0), "time": now + 1 + n / 4} for n in range(1, 90)))
    qtbot.waitUntil(lambda: len(live.feed.ring) == 91, timeout=10_000)
    assert "0.68" in view.memory._level_text.text()
    assert view.memory.chart._marks == [
        (now + 1, "evaluation", f"held-out loss {number_text(3.1)} at step 0")
    ]
    assert view.memory.chart.mark_at(now + 1) == f"held-out loss {number_text(3.1)} at step 0"
    engine.tell(
        ev.Noticed("warning", "memory.micro_batch", "Out of memory: micro-batch 4 -> 2"), told.finished()
    )
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
    assert window.studio.trainer.run.marks[-1] == (
        now + 1, "out of memory", "Out of memory: micro-batch 4 -> 2",
    )  # fmt: skip
    qtbot.waitUntil(lambda: live.feed._tail is None)
    tell(40)
    assert live.feed.newest == now + 40
    qtbot.waitUntil(lambda: "the next run is predicted to need" in view.memory_line.text())


def test_one_memory_is_told_of_the_next_run_wherever_it_is_told(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    """Weights that a run on the CPU keeps dequantized were on the run card alone."""
    window = live_window(qtbot, make_window)
    studio, view = window.studio, window.tabs.screens["live"].charts.memory_view
    told_of = sample(0)
    told_of["host"] |= {"total_bytes": 64 * GIB, "available_bytes": 60 * GIB}
    studio.machine.latest, studio.machine.fresh = told_of, (told_of,)
    studio.machine.sampled.emit()
    qtbot.waitUntil(lambda: next_run(studio) is not None)
    planned = next_run(studio)
    assert planned is not None
    assert planned.besides_bytes > 0
    needed = planned.device_bytes
    assert f"{needed / GIB:.2f} of" in next_verdict(studio)
    window.tabs.controllers["live"].memory.look()
    assert view.memory_line.text().endswith(f"predicted to need {needed / GIB:.2f}\u00a0GiB")
    assert sum(view._how[0].parts.values()) == view._how[0].tensor_bytes == needed
    tick = strip_state(told_of, studio.trainer.run, needed).tick_share
    assert tick
    assert window.strip.bar._tick == tick


def test_nothing_is_painted_while_it_cannot_be_seen(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = live_window(qtbot, make_window)
    live = window.tabs.controllers["live"].memory
    machine = window.studio.machine
    machine.fresh = (sample(0),)
    machine.sampled.emit()
    window.go_to("model")
    view = window.tabs.screens["live"].charts.memory_view
    painted: list[int] = []
    view.show_feed = lambda *_, **__: painted.append(1)
    live.look()
    assert painted == []
    window.go_to("live")
    qtbot.waitUntil(lambda: bool(painted))


def test_a_run_of_the_past_draws_its_kept_trace_again(
    qtbot: QtBot, home: Path, make_window: MakeWindow
) -> None:
    from qlora_engine.config import TrainingConfig

    folder = RunFolder.create(TrainingConfig())
    write(folder.memory_path, *(cpu_sample(n / 4, (100 + n) * MIB) for n in range(200)))
    folder.update(state="finished", loss_before=3.1, loss_after=0.5, predicted_peak_bytes=600 * MIB)
    window = make_window(loads=True)
    window.resize(1380, 880)
    qtbot.waitUntil(lambda: len(window.studio.history.summaries) == 1, timeout=20_000)
    window.open_run(str(folder.path), "live")
    qtbot.waitUntil(lambda: window.tabs.screens["live"].charts is not None, timeout=30_000)
    view = window.tabs.screens["live"].charts.memory_view
    qtbot.waitUntil(lambda: view.axis.window == (BEGAN, BEGAN + 199 / 4), timeout=10_000)
    live = fed(*(cpu_sample(n / 4, (100 + n) * MIB) for n in range(200)))
    kept = view._feed
    assert kept.ring.names == live.ring.names
    for name in live.ring.names:
        one, other = (feed.ring.curve(name, *everything(live), 300) for feed in (kept, live))
        assert np.array_equal(one.times, other.times)
        assert np.array_equal(one.values, other.values, equal_nan=True)
    assert view.memory.title.text() == "Memory of the engine, GiB"
    window.go_to("model")
    window.go_to("live")
    qtbot.waitUntil(lambda: view.memory.title.text() != "Memory of the engine, GiB", timeout=10_000)


def test_a_chart_over_steps_is_read_and_zoomed_by_keys(qtbot: QtBot) -> None:
    from app.widgets.charts import Chart, CurveStyle

    chart = Chart("Loss", (CurveStyle("loss", "Loss", "accent"),), unit="nats/token")
    qtbot.addWidget(chart)
    chart.resize(600, 300)
    chart.show()
    chart.activateWindow()
    chart.set_points("loss", [1, 2, 3], [3.0, 2.0, 1.0])
    view = chart.plot.getPlotItem().vb
    qtbot.waitUntil(lambda: view.viewRange()[0][1] > 2.9)
    before = list(view.viewRange()[0])
    chart.setFocus()
    QTest.keyClick(chart, Qt.Key.Key_Right)
    assert chart._reading.text() == "step 2: loss 2.000 nats/token"
    QTest.keyClick(chart, Qt.Key.Key_Plus)
    assert view.viewRange()[0][1] - view.viewRange()[0][0] == pytest.approx(0.8 * (before[1] - before[0]))
    QTest.keyClick(chart, Qt.Key.Key_Home)
    qtbot.waitUntil(lambda: list(view.viewRange()[0]) == pytest.approx(before))
    chart.clearFocus()
    assert chart._reading.text() == ""
