"""The window's frame: closing, questions, the keyboard, narrow windows, and what stands on the run card."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from PySide6.QtCore import QObject, QPoint, QPointF, Qt, QTimer
from PySide6.QtGui import QWheelEvent
from PySide6.QtWidgets import QAbstractButton, QApplication, QMessageBox, QPushButton
from pytestqt.qtbot import QtBot

from app import dialogs
from app.presenters.run_fold import RunFold
from app.presenters.runcard import planned_steps
from app.presenters.words import duration_text
from app.tab import DRAFT
from app.tabs import all_tabs
from app.widgets.answers import Answer, AnswerColumns, Round, Side
from app.widgets.tab_order import stops
from app.window import FOLD_BELOW, MainWindow
from qlora_engine import events as ev
from qlora_engine.config import TrainingConfig
from qlora_engine.jobs import ExportJob, TrainJob
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import schedule
from tests.app import events_of_a_run as told
from tests.app import try_states
from tests.app.conftest import MakeWindow, ScriptedEngine, engine_of
from tests.app.test_window import answer_with, start, state_of
from tests.support.run_folders import write_run

LEFT = Qt.MouseButton.LeftButton


def training(qtbot: QtBot, window: MainWindow) -> ScriptedEngine:
    start(qtbot, window)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.plan(), told.step(7))
    qtbot.waitUntil(lambda: window.studio.trainer.run.last_step is not None)
    return engine


def press(window: MainWindow, caption: str) -> None:
    next(b for b in window.banner.findChildren(QPushButton) if b.text() == caption and b.isVisible()).click()


# ---------------------------------------------------------------- closing


def test_a_window_that_saves_before_it_closes_still_answers(
    qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that does not come to its end must not leave a window that does nothing."""
    window = make_window()
    engine = training(qtbot, window)
    monkeypatch.setattr(engine, "request_stop", engine.stops.append)
    timer = answer_with("Save and close")
    assert not window.close()
    assert not timer.isActive()
    assert window.isEnabled()
    assert "being saved" in window.banner.text
    assert not window.close(), "it is being saved: no second question"
    engine.request_stop = lambda mode="": engine.tell(ev.RunStopped("ended", False, {}))  # type: ignore[method-assign]
    press(window, "Close at once")
    assert not window.isVisible()


def test_a_run_goes_on_without_the_window_when_that_is_wanted(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    engine = training(qtbot, window)
    timer = answer_with("Let it go on")
    assert not window.close()
    assert not timer.isActive()
    qtbot.waitUntil(lambda: not window.isVisible(), timeout=10_000)
    assert engine.stops == ["leave"], "neither stopped nor saved by the window"
    assert window.studio.settings.value.unfinished == "/runs/demo", "the next window shows it"


def test_one_can_change_ones_mind_while_the_run_is_saved(
    qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = make_window()
    engine = training(qtbot, window)
    monkeypatch.setattr(engine, "request_stop", engine.stops.append)
    answer_with("Save and close")
    window.close()
    press(window, "Stay open")
    engine.tell(ev.RunStopped("stopped by the user", True, {"step": 7}))
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
    assert window.isVisible()
    assert "Stopped at step 7" in window.banner.text


def test_a_run_that_ends_while_the_question_is_open_needs_no_saving(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    window = make_window()
    engine = training(qtbot, window)
    timer = QTimer(interval=50)

    def look() -> None:
        box = QApplication.activeModalWidget()
        if isinstance(box, QMessageBox):
            engine.tell(told.finished())
            if not window.studio.trainer.is_running:
                timer.stop()
                next(b for b in box.buttons() if b.text() == "Save and close").click()

    timer.timeout.connect(look)
    timer.start()
    assert window.close()
    assert not window.isVisible()


def test_a_run_that_could_not_be_saved_keeps_the_window_open(qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    window = make_window()
    engine = training(qtbot, window)
    monkeypatch.setattr(engine, "request_stop", engine.stops.append)
    answer_with("Save and close")
    window.close()
    engine.tell(ev.RunFailed("disk.full", "The disk is full", "make room"))
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
    assert window.isVisible()
    assert "The disk is full" in window.banner.text


# ---------------------------------------------------------------- questions


def questions() -> dict[str, tuple[tuple[str, str], ...]]:
    """The answers of every question the program asks."""
    asked: dict[str, tuple[tuple[str, str], ...]] = {}
    for name in ("ask_stop", "ask_close", "ask_delete"):
        original = dialogs.ask
        dialogs.ask = lambda *args, name=name: asked.update({name: args[-1]}) or dialogs.KEEP  # type: ignore[assignment]
        try:
            arguments = ("Title", "text", "more", "Delete it") if name == "ask_delete" else (RunFold(),)
            getattr(dialogs, name)(None, *arguments)
        finally:
            dialogs.ask = original
    return asked


@pytest.mark.parametrize("name", questions())
def test_nothing_is_lost_by_pressing_enter_or_escape(
    qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    answers = questions()[name]
    seen: list[tuple[str, str]] = []

    def look(box: QMessageBox) -> int:
        seen.append((box.defaultButton().text(), box.escapeButton().text()))
        return 0

    monkeypatch.setattr(QMessageBox, "exec", look)
    dialogs.ask(make_window(), "Title", "text", "more", answers)
    values = dict(answers)
    assert values[seen[0][0]] not in dialogs.DESTRUCTIVE
    assert values[seen[0][1]] == dialogs.KEEP


def test_help_and_settings_are_beside_the_window_not_in_its_way(qtbot: QtBot, make_window: MakeWindow) -> None:  # fmt: skip
    window = make_window()
    window.go_to("memory")
    window.beside.open_help()
    window.beside.open_settings()
    assert window.beside.help is not None
    assert window.beside.settings is not None
    for beside in (window.beside.help, window.beside.settings):
        qtbot.addWidget(beside)
        assert beside.isVisible()
        assert not beside.isModal()
    assert QApplication.activeModalWidget() is None
    qtbot.mouseClick(window.bar.items["Chat"], LEFT)
    assert window.tabs.current == "chat"
    first = window.beside.help
    window.beside.open_help()
    assert window.beside.help is first, "one help window, however often it is asked for"
    window.close()
    assert not first.isVisible()


# ---------------------------------------------------------------- the keyboard


@pytest.mark.parametrize("page", [tab.name for tab in all_tabs() if DRAFT in tab.of])
def test_no_click_leaves_the_keyboard_nowhere(
    qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """Every button of every page in turn: after each, something has the focus."""
    for name in ("getOpenFileName", "getSaveFileName"):
        monkeypatch.setattr(f"PySide6.QtWidgets.QFileDialog.{name}", lambda *_, **__: ("", ""))
    monkeypatch.setattr("PySide6.QtWidgets.QFileDialog.getExistingDirectory", lambda *_: "")
    monkeypatch.setattr("PySide6.QtGui.QDesktopServices.openUrl", lambda *_: True)
    monkeypatch.setattr("PySide6.QtWidgets.QDialog.exec", lambda *_: 0)
    monkeypatch.setattr("PySide6.QtWidgets.QMenu.popup", lambda *_: None)
    window = make_window()
    window.activateWindow()
    window.go_to(page)
    menus = ("Compare with",)
    buttons = [b for b in window.tabs.screens[page].findChildren(QAbstractButton) if b.isVisible() and b.isEnabled()]  # fmt: skip
    for found in buttons:
        try:
            if not found.isVisible() or found.accessibleName() in menus:
                continue
            found.setFocus()
            caption = found.text()
            found.click()
        except RuntimeError:  # an earlier click replaced it
            continue
        qtbot.waitUntil(lambda: QApplication.focusWidget() is not None, timeout=2000)
        assert QApplication.focusWidget().isVisible(), caption
        window.go_to(page)


@pytest.mark.parametrize("width", [1024, 1380])
def test_tab_goes_through_the_window_as_one_reads_it(make_window: MakeWindow, width: int) -> None:
    """List of runs, head, headings, the tab itself, run card; inside the settings from above to below."""
    window = make_window()
    window.resize(width, 700)
    window.go_to("settings")
    QApplication.processEvents()
    parts = (window.runs, window.head, window.bar, window.stack, window.card)
    usable = stops(window)
    order = [next((n for n, part in enumerate(parts) if part.isAncestorOf(w)), None) for w in usable]
    known = [n for n in order if n is not None]
    assert known == sorted(known)
    assert set(known) == ({0, 1, 2, 3} if width < FOLD_BELOW else {0, 1, 2, 3, 4})
    for form in window.tabs.screens["settings"].forms:
        tops = [w.mapTo(form, QPoint(0, 0)).y() for w in usable if form.isAncestorOf(w)]
        assert all(later >= earlier - 12 for earlier, later in pairwise(tops))


def test_the_focus_comes_back_when_its_widget_is_deleted(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    window.activateWindow()
    doomed = QPushButton("here and gone", window.centralWidget())
    doomed.show()
    doomed.setFocus()
    assert QApplication.focusWidget() is doomed
    doomed.deleteLater()
    qtbot.waitUntil(lambda: QApplication.focusWidget() is window.runs.view, timeout=2000)


# ---------------------------------------------------------------- narrow windows


@pytest.mark.parametrize("width", [1024, 1199, FOLD_BELOW, 1366])
def test_a_run_can_be_started_at_any_width(qtbot: QtBot, make_window: MakeWindow, width: int) -> None:
    window = make_window()
    window.resize(width, 680)
    qtbot.waitUntil(lambda: window.head.card.isVisible() == (width < FOLD_BELOW))
    shown = window.head.primary if width < FOLD_BELOW else window.card.start
    assert window.rect().contains(shown.mapTo(window, QPoint(0, 0)))
    assert window.rect().contains(shown.mapTo(window, shown.rect().bottomRight()))
    qtbot.waitUntil(shown.isEnabled, timeout=10_000)
    qtbot.mouseClick(shown, LEFT)
    qtbot.waitUntil(lambda: state_of(window) == "starting")
    engine_of(qtbot, TrainJob).tell(told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


# ---------------------------------------------------------------- the run card


@pytest.mark.parametrize("rows", [1, 7, 90, 1001])
@pytest.mark.parametrize("most", [None, 1, 20, 5000])
def test_the_card_counts_steps_as_the_run_will(rows: int, most: int | None) -> None:
    from app.presenters.draft import starter_draft

    draft = starter_draft(is_cpu=True).edited("training.max_steps", most)
    real = schedule.plan(draft.config.training, rows, lambda *_: []).total_steps
    assert planned_steps(draft, {"train_rows": rows}) == real
    assert most is None or real == most


def test_a_missing_data_file_is_no_run_to_start(
    qtbot: QtBot, make_window: MakeWindow, tmp_path: Path
) -> None:
    window = make_window()
    assert window.card.headline.text() == "Ready to train"
    file = tmp_path / "rows.jsonl"
    window.studio.workspace.job.choose_data(str(file))
    qtbot.waitUntil(lambda: window.card.headline.text() == "1 to fix", timeout=10_000)
    assert not window.card.start.isEnabled()
    assert not window.head.primary.isEnabled()
    file.write_text('{"text": "hello"}\n', encoding="utf-8")
    window.studio.workspace.watch.look_at_place()
    qtbot.waitUntil(lambda: window.card.headline.text() == "Ready to train", timeout=10_000)
    assert window.card.start.isEnabled()


def names_on_the_card(window: MainWindow) -> list[str]:
    return [name.text() for holder, name, _ in window.card._cells if holder.isVisibleTo(window.card)]


def test_memory_that_is_a_guess_is_marked_as_one(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    window.go_to("memory")
    screen = window.tabs.screens["memory"]
    assert "Memory, before data is read" in names_on_the_card(window)
    assert screen.verdict.text().startswith("Before data is read: ")
    window.studio.workspace.job.edit("data.seq_len", 256)
    assert "Memory" in names_on_the_card(window)
    assert not screen.verdict.text().startswith("Before data is read")


def test_the_card_tells_the_time_from_earlier_runs_of_the_model(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    window = make_window()

    def row() -> tuple[str, ...]:
        return next(row for row in window.card._facts if row[0] == "Time")

    assert row()[1:] == ("n/a", "Known once a run of this model has steps")
    config = window.studio.workspace.job.config
    earlier = write_run("earlier", [1.0] * 10, "stopped", model__name=config.model.name)
    earlier.update(model={"name": config.model.name})
    window.studio.history.refresh()
    steps, rows = config.training.max_steps, config.training.effective_batch
    assert steps is not None
    whole = steps * 0.25 * rows / TrainingConfig().training.effective_batch
    qtbot.waitUntil(lambda: row()[1] == duration_text(whole), timeout=10_000)
    window.studio.workspace.job.edit("training.max_steps", 4 * steps)
    qtbot.waitUntil(lambda: row()[1] == duration_text(4 * whole), timeout=10_000)


def test_pause_shows_that_it_waits_and_can_be_taken_back(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    engine = training(qtbot, window)
    qtbot.mouseClick(window.head.pause, LEFT)
    assert window.head.pause.text() == "Keep going"
    assert window.head.sentence.text() == "Pausing, step 7 of 60. It pauses after this micro-batch"
    engine.tell(told.step(8))
    qtbot.waitUntil(lambda: window.studio.trainer.run.step == 8)
    assert window.tabs.screens["live"].sentence.text() == "Pausing after this micro-batch"
    qtbot.mouseClick(window.head.pause, LEFT)
    assert window.head.sentence.text().startswith("Training, step 8")
    qtbot.mouseClick(window.head.pause, LEFT)
    engine.tell(ev.Paused(8))
    qtbot.waitUntil(lambda: window.head.pause.text() == "Continue")
    assert window.head.sentence.text() == "Paused at step 8"
    assert [c["command"] for c in engine.commands] == ["pause", "continue", "pause"]
    engine.tell(told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


def test_no_word_stays_longer_than_it_is_true(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    assert window.strip.run.text() == "Nothing is training"
    start(qtbot, window)
    screen = window.tabs.screens["live"]
    engine = engine_of(qtbot, TrainJob)
    for event, text in (
        (ev.PhaseChanged("downloading", "Downloading starter"), "Downloading starter"),
        (told.started(), "Preparing"),
        (ev.PhaseChanged("loading", "Loading starter"), "Loading starter"),
        (told.step(1), "Training"),
        (ev.PhaseChanged("saving", "Saving a checkpoint"), "Saving a checkpoint"),
        (told.step(2), "Training"),
    ):
        engine.tell(event)
        qtbot.waitUntil(lambda t=text: screen.phase.text() == t, timeout=5000)
    assert "Starting" not in screen.sentence.text()
    engine.tell(told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


# ---------------------------------------------------------------- chat


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


# ---------------------------------------------------------------- charts


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


# ---------------------------------------------------------------- export and runs


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
