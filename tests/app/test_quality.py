"""What 4 bits cost, in the window: what the panel is told, measuring and stopping, and the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import QPointF
from PySide6.QtGui import QImage
from pytestqt.qtbot import QtBot

from app import theme
from app.presenters.quality import HELD, QualityStatus, progress_text, quality_state
from app.services import quality as service
from app.widgets.quality_chart import QualityChart, colour, layer_step, nice_share
from app.window import MainWindow
from qlora_engine import events as ev
from qlora_engine.errors import EngineError
from qlora_engine.jobs import QualityJob, TrainJob
from qlora_engine.quantization import store
from qlora_engine.quantization.variants import Options, Variant
from tests.app.conftest import MakeWindow, engine_of, has_engine
from tests.app.quality_of_a_model import LAYERS, quality_report

NF4 = Variant("nf4", double_quant=True)
IDLE = QualityStatus()


# ---------------------------------------------------------------- presenter


def test_before_measuring_the_button_says_what_it_does() -> None:
    state = quality_state(None, NF4, IDLE, has_model=True)
    assert (state.button_text, state.can_measure) == ("Measure what 4 bits cost", True)
    assert "can be stopped" in state.hint
    assert (state.rows, state.picture, state.verdict) == ((), None, "")
    assert not quality_state(None, NF4, IDLE, has_model=False).can_measure


def test_a_training_run_holds_it_politely() -> None:
    state = quality_state(None, NF4, QualityStatus(is_held=True), has_model=True)
    assert (state.can_measure, state.hint) == (False, HELD)


def test_a_report_becomes_ready_strings() -> None:
    state = quality_state(quality_report(), NF4, IDLE, has_model=True)
    assert "NF4 with double quantization costs 0.012" in state.verdict
    assert "The paper's order holds here" in state.more
    assert [row.cells[0] for row in state.rows if row.is_own] == ["NF4 + double quantization"]
    assert len(state.rows) == 6
    assert state.rows[0].cells[1:4] == ("4.125", "9.20\u00a0%", "20.7\u00a0dB")
    assert "9.20\u00a0% at 64, 9.66\u00a0% at 128 and 10.12\u00a0% at 256" in state.blocks
    assert (state.worst[0].rank, state.worst[0].module) == (1, "model.layers.3.mlp.down_proj")
    assert state.measured_text.endswith("in 2\u00a0min on the CPU, from float32")


def test_the_job_decides_what_is_bold_and_what_is_worst() -> None:
    state = quality_state(quality_report(), Variant("fp4"), IDLE, has_model=True)
    assert [row.cells[0] for row in state.rows if row.is_own] == ["FP4"]
    assert "FP4 costs 0.051" in state.verdict
    assert state.picture is not None
    ranked = {s.name: sum(dot.rank > 0 for dot in s.dots) for s in state.picture.series}
    assert ranked == {"nf4": 0, "fp4": 5, "int4": 0}


def test_without_loss_the_cells_are_unknown() -> None:
    report = replace(quality_report(), held_out=None, why_no_held_out="there was no room")
    state = quality_state(report, NF4, IDLE, has_model=True)
    assert state.rows[0].cells[4:] == ("n/a",) * 4
    assert "there was no room" in state.verdict


def test_what_must_be_known_to_read_the_numbers_stands_on_top() -> None:
    report = quality_report()
    assert quality_state(report, NF4, IDLE, has_model=True).warning == ""
    before = replace(report, weights=replace(report.weights, distinct_in_32=12.0), notices=("A notice.",))
    state = quality_state(before, NF4, IDLE, has_model=True)
    assert state.warning.startswith("These files hold weights that were stored in 4 bits before")
    assert state.warning.endswith("\nA notice.")
    assert "4 bits before" not in state.more


def test_progress_in_words() -> None:
    assert progress_text("measuring", 60, 210, "modules") == "60 of 210 layers stored"
    assert progress_text("evaluating", 7, 280, "rows") == "7 of 280 rows read"


def test_a_failure_is_told() -> None:
    status = QualityStatus(error=EngineError("x", "it broke", "mend it"))
    state = quality_state(None, NF4, status, has_model=True)
    assert (state.problem, state.problem_hint) == ("It broke", "Mend it")


# ---------------------------------------------------------------- window


def panel_of(window: MainWindow):  # type: ignore[no-untyped-def]
    window.go_to("model")
    return window.tabs.screens["model"].quality


def test_measuring_from_button_to_table(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    panel = panel_of(window)
    panel.measure.click()
    engine = engine_of(qtbot, QualityJob)
    assert isinstance(engine.job, QualityJob)
    assert engine.job.options["is_again"] is False
    engine.tell(ev.PhaseChanged("measuring", "Storing"), ev.Progressed("measuring", 3, 210, "modules"))
    qtbot.waitUntil(lambda: panel.progress_text.toolTip() == "3 of 210 layers stored")
    assert panel.running.isVisible()
    assert not panel.measure.isVisible()
    engine.tell(ev.RunFinished(quality_report().to_json()))
    qtbot.waitUntil(lambda: panel.found.isVisible())
    assert "costs 0.012" in panel.verdict.text()
    assert panel.measure.text() == "Measure again"
    panel.measure.click()
    qtbot.waitUntil(lambda: engine_of(qtbot, QualityJob) is not engine)
    again = engine_of(qtbot, QualityJob)
    assert isinstance(again.job, QualityJob)
    assert again.job.options["is_again"] is True


def test_it_can_be_stopped(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    panel = panel_of(window)
    panel.measure.click()
    engine = engine_of(qtbot, QualityJob)
    panel.stop.click()
    assert engine.stops
    assert panel.hint.text() == service.STOPPED
    assert panel.measure.isVisible()
    assert panel.measure.isEnabled()


def test_a_run_has_the_right_of_way(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    panel = panel_of(window)
    panel.measure.click()
    engine = engine_of(qtbot, QualityJob)
    window.studio.trainer.start(window.studio.workspace.job.config)
    training = engine_of(qtbot, TrainJob)
    assert engine.stops
    assert panel.hint.text() == HELD
    assert not panel.measure.isEnabled()
    training.tell(ev.RunFinished({}))
    qtbot.waitUntil(lambda: panel.measure.isEnabled())
    assert panel.hint.text() == service.MADE_ROOM


def test_another_model_is_another_question(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    panel = panel_of(window)
    panel.measure.click()
    engine = engine_of(qtbot, QualityJob)
    engine.tell(ev.RunFinished(quality_report().to_json()))
    qtbot.waitUntil(lambda: panel.found.isVisible())
    window.studio.workspace.job.edit("lora.rank", 4)
    assert panel.found.isVisible()
    window.studio.workspace.job.edit("model.name", "llama-7b")
    assert not panel.found.isVisible()


def test_what_was_measured_before_is_shown_at_once(
    qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Options] = []

    def kept(config: object, options: Options) -> object:
        asked.append(options)
        return quality_report()

    monkeypatch.setattr(store, "kept", kept)
    window = make_window()
    panel = panel_of(window)
    qtbot.waitUntil(lambda: panel.found.isVisible(), timeout=5000)
    assert asked[0] == Options()
    assert not has_engine(QualityJob)


def test_a_failed_measurement_is_told(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    panel = panel_of(window)
    panel.measure.click()
    engine_of(qtbot, QualityJob).tell(ev.RunFailed("model.load", "it could not be loaded", "download it"))
    qtbot.waitUntil(lambda: panel.problem.isVisible())
    assert panel.problem.text == "It could not be loaded"


# ---------------------------------------------------------------- picture


@pytest.fixture
def chart(qtbot: QtBot) -> QualityChart:
    found = QualityChart()
    qtbot.addWidget(found)
    found.resize(700, 280)
    found.show_picture(quality_state(quality_report(), NF4, IDLE, has_model=True).picture)
    found.show()
    return found


def test_the_worst_is_found_under_the_pointer(chart: QualityChart) -> None:
    assert chart._picture is not None
    own = chart._picture.series[0]
    worst = next(dot for dot in own.dots if dot.rank == 1)
    found = chart.dot_at(chart.place_of(worst))
    assert found == worst
    assert found.tip.startswith("model.layers.3.mlp.down_proj\nNF4 with double quantization: ")
    assert "dB" in found.tip
    assert chart.dot_at(QPointF(5, 5)) is None


def test_numbers_of_the_worst_cover_neither_rings_nor_each_other(chart: QualityChart) -> None:
    from PySide6.QtCore import QRectF
    from PySide6.QtGui import QPainter, QPixmap

    assert chart._picture is not None
    pixmap = QPixmap(chart.size())
    painter = QPainter(pixmap)
    taken = [QRectF(104, 93, 14, 14), QRectF(80, 93, 14, 14)]
    first = chart._paint_ranks(painter, QPointF(87, 100), "4, 5", taken)
    second = chart._paint_ranks(painter, QPointF(111, 100), "3", [*taken, first])
    edge = chart._paint_ranks(painter, QPointF(chart.width() - 5, 50), "1, 2", [])
    painter.end()
    assert not any(first.intersects(other) for other in taken)
    assert not any(second.intersects(other) for other in [*taken, first])
    assert edge.right() <= chart.width()


def test_depth_runs_from_left_to_right_and_error_upwards(chart: QualityChart) -> None:
    assert chart._picture is not None
    dots = chart._picture.series[0].dots
    assert chart.place_of(dots[0]).x() < chart.place_of(dots[-1]).x()
    low, high = min(dots, key=lambda d: d.error), max(dots, key=lambda d: d.error)
    assert chart.place_of(high).y() < chart.place_of(low).y()
    area = chart._area()
    assert all(
        area.adjusted(-1, -1, 1, 1).contains(chart.place_of(d)) for s in chart._picture.series for d in s.dots
    )


@pytest.mark.parametrize("mode", ["dark", "light"])
def test_every_series_is_painted_in_its_colour(
    chart: QualityChart, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theme, "_current", theme.DARK if mode == "dark" else theme.LIGHT)
    image: QImage = chart.grab().toImage()
    seen = {image.pixelColor(x, y).name() for x in range(image.width()) for y in range(image.height())}
    assert {colour(name).name() for name in ("nf4", "fp4", "int4")} <= seen


def test_a_picture_of_one_layer_and_of_none_can_be_painted(chart: QualityChart) -> None:
    report = quality_report()
    weights = replace(report.weights, layers=1, measured_layers=(0,), modules=report.weights.modules[:7])
    chart.show_picture(quality_state(replace(report, weights=weights), NF4, IDLE, has_model=True).picture)
    chart.grab()
    chart.show_picture(None)
    chart.grab()


@pytest.mark.parametrize("top", [0.001, 0.013, 0.1, 0.19, 0.5, 1.12, 7.0])
def test_scales_have_few_lines(top: float) -> None:
    assert 2 <= int(top / nice_share(top)) <= 7


def test_layers_are_numbered_sparsely() -> None:
    for layers in (1, 2, 12, 30, 80, 126, 500):
        assert len(range(0, layers, layer_step(layers))) <= 11
    assert LAYERS == 30


def test_kept_reports_lie_in_the_programs_own_folder(home: Path) -> None:
    store.write("abc", quality_report())
    assert (home / "quality" / "abc.json").is_file()
    assert store.read("abc") == quality_report()
    (home / "quality" / "abc.json").write_text("{", encoding="utf-8")
    assert store.read("abc") is None
