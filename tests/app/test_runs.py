"""The list of runs and what is done from it: drafts, names, several at once, deleting, comparing."""

from __future__ import annotations

import csv
import math
import re
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app.dialogs import KEEP, QUEUE, START_ANYWAY
from app.presenters.draft import CUSTOM, recognised, starter_draft
from app.presenters.run_rows import RunRow, shown_rows
from app.services.shown_run import DRAFT
from app.tab import DRAFT as OF_DRAFT
from app.tab import RUN, SEVERAL
from app.tabs import all_tabs
from app.widgets.notes_dialog import NotesDialog
from app.widgets.run_list import RunList
from app.window import MainWindow
from qlora_engine import config_io
from qlora_engine import events as ev
from qlora_engine.config import with_value
from qlora_engine.jobs import ResumeJob, TrainJob
from qlora_engine.runs import notes, plans, queue
from qlora_engine.runs.record import RunFolder
from tests.app import events_of_a_run as told
from tests.app import try_states
from tests.app.acts import LEFT, answer_with
from tests.app.conftest import MakeWindow, engine_of
from tests.app.window_states import make_runs
from tests.support.run_folders import add_checkpoint


def opened(qtbot: QtBot, make_window: MakeWindow, count: int) -> MainWindow:
    window = make_window()
    window.studio.history.refresh()
    qtbot.waitUntil(lambda: len(window.studio.history.entries) == count, timeout=10_000)
    return window


def names(window: MainWindow) -> list[str]:
    return [row.name for row in window.runs.model.rows]


def choose(window: MainWindow, *wanted: str) -> None:
    """As a person does: a click on a row, with Ctrl on the others."""
    view = window.runs.view
    for place, name in enumerate(wanted):
        index = window.runs.model.index(names(window).index(name))
        keys = Qt.KeyboardModifier.ControlModifier if place else Qt.KeyboardModifier.NoModifier
        QTest.mouseClick(view.viewport(), LEFT, keys, view.visualRect(index).center())


def test_every_kind_of_choice_has_a_tab_that_is_seen_first() -> None:
    tabs = all_tabs()
    assert len({tab.place for tab in tabs}) == len(tabs)
    for kind in (OF_DRAFT, RUN, SEVERAL):
        (first,) = [tab for tab in tabs if kind in tab.opens]
        assert kind in first.of


def test_the_list_is_searched_filtered_and_sorted(qtbot: QtBot, make_window: MakeWindow) -> None:
    make_runs()
    window = opened(qtbot, make_window, 4)
    assert names(window)[0] == "New run"
    window.runs.search.setText("poems")
    assert names(window) == ["poems"]
    window.runs.search.setText("nothing like it")
    assert window.runs.empty.isVisible()
    window.runs.search.setText("")
    window.runs.filter.setCurrentIndex(window.runs.filter.findData("finished"))
    window.runs.filter.activated.emit(0)
    assert names(window) == ["first-look"]
    window.runs.filter.setCurrentIndex(0)
    window.runs.sort.setCurrentIndex(window.runs.sort.findData("loss"))
    window.runs.sort.activated.emit(0)
    assert names(window)[1:3] == ["first-look", "halfway"]


def test_two_thousand_runs_are_listed_searched_and_repainted_quickly(qtbot: QtBot) -> None:
    """Every 100 ms of a live run the list is painted again."""
    view = RunList()
    qtbot.addWidget(view)
    view.show()
    rows = [RunRow(f"/runs/{n}", "finished", f"run {n}", "starter", "0.5", 1.0, f"run {n} starter", float(n), 0.5) for n in range(2000)]  # fmt: skip
    view.show_rows(rows, ("/runs/7",))
    began = time.thread_time()
    for loss in range(10):
        rows[3] = replace(rows[3], loss_text=f"{loss}")
        view.show_rows(shown_rows(rows, "run 1", "all", "loss"), ("/runs/7",))
        view.show_rows(shown_rows(rows, "", "all"), ("/runs/7",))
        QApplication.processEvents()
    assert (time.thread_time() - began) / 20 < 0.1


def test_a_run_of_the_past_opens_on_what_it_learned_a_failed_one_on_its_error(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    make_runs()
    window = opened(qtbot, make_window, 4)
    choose(window, "first-look")
    live = window.tabs.screens["live"]
    assert window.tabs.current == "live"
    qtbot.waitUntil(lambda: "Step 40 of 45 was kept" in live.outcome._hint.text(), timeout=10_000)
    assert live.outcome.text.startswith("Learned: held-out loss 3.168 before, 0.4490 after")
    assert window.head.primary.text() == "Try it"
    window.go_to("files")
    (failed,) = [name for name in names(window) if name.startswith("a-model")]
    choose(window, failed)
    assert window.tabs.current == "live"
    qtbot.waitUntil(
        lambda: live.outcome.text == "The GPU is out of memory even at micro-batch 1.", timeout=10_000
    )
    assert window.head.primary.text() == "Resume"
    qtbot.mouseClick(window.head.primary, LEFT)
    engine = engine_of(qtbot, ResumeJob)
    hint = "put it back, or go on all the same: `qlora resume x --accept data`"
    engine.tell(ev.RunFailed("resume.differs", "step 40 was made with something else", hint))
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
    buttons = {b.text(): b for b in live.outcome.findChildren(type(window.head.primary)) if b.isVisible()}
    qtbot.mouseClick(buttons["Go on all the same"], LEFT)
    qtbot.waitUntil(lambda: engine_of(qtbot, ResumeJob) is not engine, timeout=10_000)
    again = engine_of(qtbot, ResumeJob)
    assert again.job.accept == ("data",)
    again.tell(told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


def test_drafts_are_planned_runs_that_are_edited_and_started_in_their_folder(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    window = opened(qtbot, make_window, 0)
    job = window.studio.workspace.job
    job.edit("lora.rank", 24)
    qtbot.mouseClick(window.runs.new, LEFT)
    assert job.config.lora.rank != 24, "a new one begins from the start"
    qtbot.waitUntil(lambda: len(window.studio.history.entries) == 1, timeout=10_000)
    (kept,) = window.studio.history.entries
    assert (kept.state, RunFolder(kept.path).asked()[0].lora.rank) == ("planned", 24)
    choose(window, kept.title)
    assert job.config.lora.rank == 24
    assert window.tabs.current == "model"
    job.edit("lora.alpha", 7)
    choose(window, "New run")
    assert job.config.lora.alpha != 7
    assert RunFolder(kept.path).asked()[0].lora.alpha == 7
    choose(window, kept.title)
    qtbot.waitUntil(window.card.start.isEnabled, timeout=10_000)
    qtbot.mouseClick(window.card.start, LEFT)
    engine = engine_of(qtbot, TrainJob)
    assert engine.job.run_dir == str(kept.path)
    assert engine.job.config["lora"]["alpha"] == 7
    engine.tell(told.started(str(kept.path)), told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


def test_a_draft_waits_in_the_queue_and_is_taken_out_again(
    qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr("qlora_engine.runs.queue_runner.ensure_running", lambda: started.append(1) or [])
    window = opened(qtbot, make_window, 0)
    qtbot.waitUntil(window.card.queue.isEnabled, timeout=10_000)
    for count in (1, 2):
        window.studio.shown.show(DRAFT)
        window.go_to("model")
        qtbot.mouseClick(window.card.queue, LEFT)
        qtbot.waitUntil(lambda n=count: len(queue.read().entries) == n, timeout=10_000)
    qtbot.waitUntil(lambda: [r.state_text for r in window.runs.model.rows][1:] == ["Queued, place 1", "Queued, place 2"], timeout=10_000)  # fmt: skip
    qtbot.waitUntil(lambda: bool(started), timeout=10_000)
    assert "Queued, place 2" in window.head.sentence.text()
    second = window.studio.shown.path
    window.head.menu_asked.emit("first")
    qtbot.waitUntil(lambda: queue.read().entries[0].run_dir == second, timeout=10_000)
    window.head.menu_asked.emit("hold")
    qtbot.waitUntil(lambda: queue.read().is_paused, timeout=10_000)
    window.head.menu_asked.emit("unqueue")
    qtbot.waitUntil(lambda: len(queue.read().entries) == 1, timeout=10_000)
    assert second is not None
    assert second.exists(), "it stays a draft"


def test_a_run_is_named_tagged_and_duplicated(
    qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = try_states.make_run("first")
    window = opened(qtbot, make_window, 1)
    choose(window, "first")

    def fill(dialog: NotesDialog) -> int:
        dialog.name.setText("x" * 500)
        dialog.save.click()
        assert "characters" in dialog.notice.text, "what is refused is said, and nothing is lost"
        dialog.name.setText("Poems, second try")
        dialog.tags.setText("poems, best")
        dialog.save.click()
        return dialog.result()

    monkeypatch.setattr(NotesDialog, "exec", fill)
    window.head.menu_asked.emit("notes")
    assert notes.read(run.path).tags == ("poems", "best")
    qtbot.waitUntil(lambda: "Poems, second try" in names(window), timeout=10_000)
    qtbot.waitUntil(lambda: window.head.name.text() == "Poems, second try", timeout=10_000)
    window.head.menu_asked.emit("duplicate")
    qtbot.waitUntil(lambda: "Poems, second try (copy)" in names(window), timeout=10_000)
    qtbot.waitUntil(lambda: window.studio.shown.is_draft, timeout=10_000)


def test_several_are_deleted_into_the_trash_and_the_room_is_told(
    qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [try_states.make_run(name) for name in ("one", "two", "three")]
    thrown: list[str] = []
    monkeypatch.setattr(
        "send2trash.send2trash", lambda path: (thrown.append(path), __import__("shutil").rmtree(path))
    )
    window = opened(qtbot, make_window, 3)
    choose(window, "one", "two")
    timer = answer_with("Move to the trash")
    window.head.menu_asked.emit("delete")
    qtbot.waitUntil(lambda: len(thrown) == 2, timeout=10_000)
    assert not timer.isActive()
    qtbot.waitUntil(lambda: "freed" in window.banner.text, timeout=10_000)
    qtbot.waitUntil(lambda: window.studio.shown.keys == (DRAFT,), timeout=10_000)
    assert runs[2].path.exists()
    assert not runs[0].path.exists()


def curves_of(name: str, rate: float) -> RunFolder:
    run = try_states.make_run(name)
    run.update(job={**run.record()["job"], "lora": {**run.record()["job"]["lora"], "rank": int(8 * rate)}})
    for number in range(1, 61):
        run.append(told.step(number, loss=3.0 * math.exp(-rate * number / 40)))
    return run


def test_a_comparison_shows_the_numbers_of_the_files_and_only_what_differs(
    qtbot: QtBot, make_window: MakeWindow, tmp_path: Path
) -> None:
    for name, rate in (("slow", 1.0), ("fast", 2.0)):
        curves_of(name, rate)
    window = opened(qtbot, make_window, 2)
    choose(window, "slow", "fast")  # the last that is clicked is the first
    assert window.tabs.current == "compare"
    assert window.head.name.text() == "2 runs"
    screen, controller = window.tabs.screens["compare"], window.tabs.controllers["compare"]
    qtbot.waitUntil(lambda: screen.chart is not None and len(screen.chart.lines) == 2, timeout=30_000)
    table = screen.differences
    assert [table.item(0, n).text() for n in range(3)] == ["Rank", "16", "8"]
    assert table.rowCount() == 1, "only what differs"
    screen.smoothing.setValue(0)
    value = "0.4060\u00a0nats/token at step 40"
    qtbot.waitUntil(lambda: screen.chart.texts_at(40.4)[0] == value, timeout=5000)
    assert [box.accessibleName() for box, _ in screen._values] == ["fast", "slow"]
    screen._values[0][0].click()
    assert not screen.chart.lines[0].isVisible()
    screen.log.click()
    screen.clip.click()
    screen.axis._buttons["tokens"].click()
    qtbot.waitUntil(lambda: screen.chart._points[0][0][-1] == 60 * 480, timeout=5000)
    for kind in ("png", "svg", "csv"):
        controller.save_as(kind, tmp_path / f"c.{kind}")
        assert (tmp_path / f"c.{kind}").stat().st_size > 500
    drawn = re.findall(r">([^<>]+)</text>", (tmp_path / "c.svg").read_text())
    assert "slow" in drawn, "a picture names its lines"
    assert "fast" not in drawn, "what is hidden is not named"
    assert "Training loss (nats/token, log scale) over tokens" in drawn
    with (tmp_path / "c.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["fast: loss"]]
    assert len(rows) == 60
    mean = statistics.fmean(float(row["fast: loss"]) for row in rows)
    assert mean == pytest.approx(statistics.fmean(3.0 * math.exp(-2 * n / 40) for n in range(1, 61)))
    window.go_to("chat")
    sets = window.tabs.screens["chat"].sets
    assert len(sets.chosen_runs()) == 2, "the same prompts can be asked of each"
    choose(window, "fast")
    assert window.tabs.current == "chat"
    assert QApplication.focusWidget() is not None


@pytest.mark.parametrize("name", [None, *(preset.name for preset in config_io.presets())])
@pytest.mark.parametrize("is_cpu", [True, False])
def test_a_planned_run_keeps_the_name_of_its_recipe(name: str | None, is_cpu: bool) -> None:
    draft = starter_draft(is_cpu=is_cpu)
    for parameters in (10**8, 65 * 10**9):
        wanted = draft.with_preset(name, parameters) if name is not None else draft
        config = with_value(wanted.config, "output.name", "of my own")
        read = config_io.from_dict(config_io.to_dict(config), "a planned run")
        found = recognised(read, is_cpu=is_cpu)
        assert found.preset == wanted.preset
        assert not found.changes
    other = recognised(with_value(draft.config, "lora.rank", 77), is_cpu=is_cpu)
    assert other.preset == CUSTOM


def test_a_run_that_a_terminal_trains_is_watched(qtbot: QtBot, make_window: MakeWindow) -> None:
    folder = plans.create(try_states.make_run("first").job())
    add_checkpoint(folder, 2)
    folder.claim()
    try:
        window = opened(qtbot, make_window, 2)
        choose(window, folder.run_id)
        assert window.studio.shown.state == "elsewhere"
        qtbot.waitUntil(lambda: window.studio.shown.fold.state == "elsewhere", timeout=5000)
        folder.append(told.started(str(folder.path)))
        folder.append(told.plan(60))
        folder.append(told.step(3))
        qtbot.waitUntil(lambda: window.studio.shown.fold.step == 3, timeout=10_000)
        assert "Training in another program, step 3 of 60" in window.head.sentence.text()
        folder.append(told.step(4))
        qtbot.waitUntil(lambda: window.studio.shown.fold.step == 4, timeout=10_000)
    finally:
        folder.release()


def test_a_run_elsewhere_stops_visibly_once_it_was_asked_to(qtbot: QtBot, make_window: MakeWindow) -> None:
    folder = plans.create(try_states.make_run("first").job())
    add_checkpoint(folder, 2)
    folder.claim()
    try:
        window = opened(qtbot, make_window, 2)
        choose(window, folder.run_id)
        folder.append(told.started(str(folder.path)))
        folder.append(told.plan(60))
        folder.append(told.step(3))
        qtbot.waitUntil(lambda: window.studio.shown.fold.step == 3, timeout=10_000)
        answer_with("Stop and save")
        window.steering.stop()
        qtbot.waitUntil(lambda: "Stopping in another program" in window.head.sentence.text(), timeout=10_000)
        assert not window.head.stop.isEnabled()
        assert not window.head.pause.isEnabled()
        choose(window, "first")
        choose(window, folder.run_id)
        folder.append(told.step(4))
        qtbot.waitUntil(lambda: window.studio.shown.fold.step == 4, timeout=10_000)
        assert window.studio.shown.fold.state == "stopping", "also after another run was looked at"
        folder.append(ev.RunStopped("stopped by the user", True, {"step": 4}))
        folder.release()
        window.studio.history.refresh()
        qtbot.waitUntil(lambda: not window.studio.shown.fold.is_live, timeout=10_000)
    finally:
        folder.release()


@pytest.mark.parametrize("answer", [QUEUE, START_ANYWAY, KEEP])
def test_a_start_beside_another_run_is_asked_about(
    answer: str, qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("app.frame.steering.ask_busy", lambda _, busy: asked.append(busy.message) or answer)
    monkeypatch.setattr("qlora_engine.runs.queue_runner.ensure_running", list)
    other = plans.create(try_states.make_run("first").job())
    other.claim()
    try:
        window = opened(qtbot, make_window, 2)
        qtbot.waitUntil(window.card.start.isEnabled, timeout=10_000)
        qtbot.mouseClick(window.card.start, LEFT)
        qtbot.waitUntil(lambda: bool(asked), timeout=10_000)
        assert "is training run" in asked[0]
        if answer == QUEUE:
            qtbot.waitUntil(lambda: len(queue.read().entries) == 1, timeout=10_000)
        if answer == START_ANYWAY:
            engine = engine_of(qtbot, TrainJob)
            engine.tell(told.started(), told.finished())
            qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
        else:
            assert not window.studio.trainer.is_running
    finally:
        other.release()
