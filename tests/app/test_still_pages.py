"""What a page shows stays where it is: answers side by side, charts under the wheel, a form that was filled in."""

from __future__ import annotations

import pytest
from PySide6.QtCore import QObject, QPoint, QPointF, Qt
from PySide6.QtGui import QWheelEvent
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app.widgets.answers import Answer, AnswerColumns, Round, Side
from app.window import MainWindow
from qlora_engine import events as ev
from qlora_engine.jobs import ExportJob
from qlora_engine.runs.record import RunFolder
from tests.app import events_of_a_run as told
from tests.app import try_states
from tests.app.conftest import MakeWindow, engine_of
from tests.app.live_runs import LEFT


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("width", [420, 640, 1200])
def test_all_who_answer_stand_side_by_side_equally_wide(qtbot: QtBot, count: int, width: int) -> None:
    columns = AnswerColumns()
    qtbot.addWidget(columns)
    columns.resize(width, 200)
    columns.show()
    names = [f"side {n}" for n in range(count)]
    answers = {name: Answer("x" * 300 if index % 2 else "few words", "3 tokens") for index, name in enumerate(names)}  # fmt: skip
    rounds = [Round("a question " * 20, answers), Round("another", answers)]
    columns.show_rounds([Side(name, name, "") for name in names], rounds)
    qtbot.wait(20)
    document = columns.text.document()
    (table,) = document.rootFrame().childFrames()
    layout = document.documentLayout()
    assert document.size().width() <= columns.text.viewport().width() + 1
    for row in (1, 3):
        cells = [table.cellAt(row, n).firstCursorPosition().block() for n in range(count)]  # type: ignore[attr-defined]
        places = [layout.blockBoundingRect(block) for block in cells]
        assert max(p.width() for p in places) - min(p.width() for p in places) <= 1
        assert max(abs(p.top() - places[0].top()) for p in places) < 0.5, "side by side"
        for name, place in zip(names, places, strict=True):
            title = columns.titles[name]
            left = title.mapTo(columns, QPoint(title.contentsRect().left(), 0)).x()
            found = columns.text.viewport().mapTo(columns, QPoint(round(place.left()), 0)).x()
            assert abs(left - found) <= 3, "each title stands over its answers"


def live_page(qtbot: QtBot, window: MainWindow) -> None:
    run = window.studio.trainer.run
    run.begin()
    window.studio.shown.show_own()
    window.go_to("live")
    qtbot.waitUntil(lambda: window.tabs.screens["live"].charts is not None, timeout=30_000)
    for event in told.whole_run(45):
        run.fold(event)
    window.studio.trainer.state_changed.emit()
    qtbot.wait(50)


def turn_wheel(target: QObject, modifier: Qt.KeyboardModifier) -> QWheelEvent:
    event = QWheelEvent(
        QPointF(20, 20), QPointF(20, 20), QPoint(0, 0), QPoint(0, -120), Qt.MouseButton.NoButton, modifier,
        Qt.ScrollPhase.NoScrollPhase, False,
    )  # fmt: skip
    QApplication.sendEvent(target, event)
    return event


def test_the_wheel_over_any_chart_scrolls_the_page_and_hovering_moves_nothing(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    window = make_window()
    live_page(qtbot, window)
    window.resize(1024, 600)
    charts = window.tabs.screens["live"].charts
    for target in (charts.loss.plot.viewport(), charts.rate.plot.viewport(), charts.memory.chart):
        event = turn_wheel(target, Qt.KeyboardModifier.NoModifier)
        assert not event.isAccepted(), "left to the page, which scrolls"
        assert turn_wheel(target, Qt.KeyboardModifier.ControlModifier).isAccepted(), "Ctrl and wheel zooms"
    qtbot.wait(20)
    parts = (charts.loss, charts.rate, charts.grad, charts.speed, charts.memory)
    before = [w.geometry() for w in parts]
    for step in range(46):
        charts.loss.pointed.emit(float(step))
    charts.memory_view.axis.point(told.BEGAN + 20)
    qtbot.wait(20)
    assert charts.loss._reading.text()
    assert [w.geometry() for w in parts] == before
    window.studio.trainer.run.fold(told.finished())


def test_every_chart_names_its_axes_and_units(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    live_page(qtbot, window)
    charts = window.tabs.screens["live"].charts
    for chart in (charts.loss, charts.rate, charts.grad, charts.speed):
        axis = chart.plot.getPlotItem().getAxis("bottom")
        assert axis.tickStrings([0.0, 20.0], 1.0, 20.0)[0] == "step 0"
    assert "nats" in charts.loss._title.text()
    assert "tokens/s" in charts.speed._title.text()
    assert len(charts.loss._legend) == 3
    assert (charts.memory.chart._unit, charts.memory_view.paged.chart._unit) == ("GiB", "GiB")
    window.studio.trainer.run.fold(told.finished())


def exportable(name: str) -> RunFolder:
    run = try_states.make_run(name)
    run.update(state="finished")
    return run


def test_news_of_the_runs_leave_the_export_form_as_it_was_filled_in(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    one = exportable("one")
    window = make_window(loads=True)
    qtbot.waitUntil(lambda: len(window.studio.history.summaries) == 1, timeout=20_000)
    window.open_run(str(one.path), "export")
    screen = window.tabs.screens["export"]
    qtbot.waitUntil(screen.export.isEnabled, timeout=20_000)
    screen.out.setText("/my/own/place")
    screen.dtype.setCurrentIndex(1)
    two = exportable("two")
    window.studio.history.refresh()
    qtbot.waitUntil(lambda: len(window.studio.history.summaries) == 2, timeout=10_000)
    assert (screen.out.text(), screen.dtype.currentIndex()) == ("/my/own/place", 1)
    screen._radios["adapter"].click()
    assert screen.out.text().endswith("one-adapter")
    qtbot.mouseClick(screen.export, LEFT)
    engine = engine_of(qtbot, ExportJob)
    assert not screen._radios["merged"].isEnabled(), "what is being exported cannot be changed"
    window.open_run(str(two.path), "export")
    assert screen.out.text().endswith("one-adapter")
    engine.tell(ev.RunFinished({"path": "/out", "bytes": 2**20, "is_proven": True}))
    qtbot.waitUntil(lambda: not window.studio.jobs["export"].is_running)
    assert screen.proof.heading.text() == "Proof: one, Adapter (PEFT)"
    screen._radios["merged"].click()
    assert screen.out.text().endswith("two-merged")
    assert screen.proof.heading.text() == "Proof: one, Adapter (PEFT)", "the proof says what it is of"
