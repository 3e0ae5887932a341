"""What stands on the run card, and for how long; narrow windows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PySide6.QtCore import QPoint
from pytestqt.qtbot import QtBot

from app.presenters import numerals
from app.presenters.runcard import planned_steps
from app.presenters.words import GIB, MIB, duration_text
from app.window import FOLD_BELOW, MainWindow
from qlora_engine import events as ev
from qlora_engine.config import TrainingConfig
from qlora_engine.jobs import TrainJob
from qlora_engine.training import schedule
from tests.app import events_of_a_run as told
from tests.app.acts import start, state_of
from tests.app.conftest import MakeWindow, engine_of
from tests.app.live_runs import LEFT, training
from tests.support.run_folders import write_run


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
    assert window.strip.run.text() == "Nothing is training in this window"
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


def test_the_card_and_the_memory_page_tell_of_one_usable_memory(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    window = make_window()
    window.go_to("memory")
    screen, machine = window.tabs.screens["memory"], window.studio.machine

    def usable(available: int) -> tuple[str, str]:
        """As the card and the page tell it after such a sample."""
        host = {"total_bytes": 64 * GIB, "available_bytes": available, "used_bytes": 64 * GIB - available}
        machine.latest = {"host": {**host, "cpu_ratio": 0.5}, "gpus": ()}
        machine.sampled.emit()
        window.studio.history.changed.emit()  # for which the page paints anew, and the card does not
        told = dict(row[:2] for row in window.run_card._card_state.rows)["Memory, before data is read"]
        page = re.search(r"([\d.]+)\u00a0GiB of 64", screen.more.text())
        return told.split("of ")[1].split("\u00a0")[0], numerals.decimal(float(page[1]), 1)

    for available, shown in ((32 * GIB, "32.0"), (32 * GIB + 200 * MIB, "32.0"), (34 * GIB, "34.0")):
        assert usable(available) == (shown, shown)
