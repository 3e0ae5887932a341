"""An experiment in the window: from the draft over the grid with its memory and time to the margins of its cells."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app.presenters import experiment
from app.presenters.experiment import TYPE_MORE, ExperimentState, Wish, refused, typed_values
from app.presenters.memory_words import Capacity
from app.widgets.experiment_dialog import ExperimentDialog
from app.window import MainWindow
from qlora_engine.config import TrainingConfig, all_knobs
from qlora_engine.errors import EngineError
from qlora_engine.runs import queue, sweep
from qlora_engine.runs.index import RunIndex
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.sweep import LookedAt
from tests.app.conftest import MakeWindow
from tests.app.geometry import clipped, covered_or_outside, unnamed, visible
from tests.app.test_runs import opened
from tests.app.test_screens import settle
from tests.support.run_folders import config_of, write_run

MODEL = "llama-3.2-1b"


@pytest.fixture(autouse=True)
def nobody_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_engine.runs.queue_runner.ensure_running", list)
    monkeypatch.setattr("qlora_engine.runs.queue_runner.places_here", lambda: ["cpu"])


def asked(qtbot: QtBot, make_window: MakeWindow, count: int = 0) -> tuple[MainWindow, ExperimentDialog]:
    window = opened(qtbot, make_window, count)
    qtbot.waitUntil(window.card.vary.isEnabled, timeout=10_000)
    window.card.vary.setFocus()
    QTest.keyClick(window.card.vary, Qt.Key.Key_Space)
    assert window.trying.dialog is not None
    return window, window.trying.dialog


def choose(dialog: ExperimentDialog, place: int, path: str) -> None:
    combo = dialog.which[place]
    combo.setCurrentIndex(combo.findData(path))
    combo.activated.emit(combo.currentIndex())


def cells(dialog: ExperimentDialog) -> list[list[str]]:
    table = dialog.table
    return [
        [table.item(row, column).text() for column in range(table.columnCount())]
        for row in range(table.rowCount())
    ]


@pytest.mark.parametrize(
    ("path", "text", "values"),
    [
        ("lora.rank", "8, 16,32", (8, 16, 32)),
        ("training.learning_rate", "1e-4; 0.0003", (1e-4, 3e-4)),
        ("lora.targets", "all-linear; q_proj, v_proj", ("all-linear", ("q_proj", "v_proj"))),
        ("training.max_steps", "none, 100", (None, 100)),
        ("lora.rank", "", ()),
    ],
)
def test_a_typed_list_is_read_as_its_setting_is(path: str, text: str, values: tuple[Any, ...]) -> None:
    assert typed_values(all_knobs()[path], text) == values


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("lora.rank", "8, many", "Rank must be a whole number, not 'many'"),
        ("lora.rank", "8, 0", "Rank must be at least 1"),
        ("training.learning_rate", "none", "must be a number"),
    ],
)
def test_a_value_that_cannot_be_is_told_in_the_settings_own_words(path: str, text: str, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        typed_values(all_knobs()[path], text)


def test_every_cell_has_its_memory_and_its_time() -> None:
    done = write_run("done", [1.0] * 10, "stopped", model__name=MODEL, training__effective_batch=4)
    done.update(model={"name": MODEL})
    config = config_of(model__name=MODEL, training__effective_batch=4)
    wish = Wish((("lora.rank", ("8, 256",)), ("quantization.double_quant", (True, False))), 2)
    look = LookedAt(config, 512, 40, 4000, None)
    capacity = Capacity("GPU", 4 * 2**30, 4 * 2**30)
    found = experiment.preview(config, wish, RunIndex().entries(), "cuda", look)
    state = experiment.state_of(*found, capacity)
    assert state.heads == ("Rank", "Double quantization", "Memory", "Time for 2 seeds")
    assert [row[:2] for row in state.rows] == [("8", "on"), ("8", "off"), ("256", "on"), ("256", "off")]
    assert all(row[2].startswith(("Fits: ", "Does not fit: ")) for row in state.rows)
    assert [row[3] for row in state.rows] == [
        "15\u00a0s"
    ] * 4  # 2 seeds x 3 epochs x 10 steps of a quarter of a second
    assert state.total == "4 cells under 2 seeds each: 8 runs, altogether 60\u00a0s."
    assert state.queue_text == "Put 8 runs into the queue"
    nothing = experiment.state_of(*experiment.preview(config, wish, (), "cuda", look), None)
    assert {row[3] for row in nothing.rows} == {"n/a"}
    assert "until a run of this model has steps" in nothing.total


def test_rows_that_were_counted_in_other_data_tell_nothing_of_a_cell() -> None:
    done = write_run("done", [1.0] * 10, model__name=MODEL, data__seq_len=512)
    done.update(model={"name": MODEL})
    config = config_of(model__name=MODEL, data__seq_len=512)
    wish = Wish((("data.path", ("starter, other.jsonl",)),), 1)
    own, other = experiment.preview(
        config, wish, RunIndex().entries(), "cpu", LookedAt(config, 512, 40, 4000)
    )[1]
    assert own.seconds is not None
    assert other.seconds is None


def test_values_are_checked_as_they_are_typed(qtbot: QtBot, make_window: MakeWindow) -> None:
    _, dialog = asked(qtbot, make_window)
    assert dialog.which[0].currentData() == "lora.rank"
    assert not dialog.begin.isEnabled(), "one value is no experiment"
    field = dialog.editors[0].field
    assert field is not None
    assert field.text() == "8", "the draft's own comes first"
    field.setFocus()
    QTest.keyClicks(field, ", much")
    qtbot.waitUntil(lambda: "Rank must be a whole number, not 'much'" in dialog.notice.text, timeout=10_000)
    assert not dialog.begin.isEnabled()


def test_an_experiment_is_lined_up_by_keyboard_and_compared_with_the_noise_of_its_seeds(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    window, dialog = asked(qtbot, make_window)
    assert dialog.editors[0].field is not None
    dialog.editors[0].field.setText("4, 8")
    choose(dialog, 1, "training.join_rows")
    boxes = dict(dialog.editors[1].boxes)
    assert [box.isChecked() for box in boxes.values()] == [True, False]
    boxes[False].click()
    qtbot.waitUntil(lambda: dialog.table.rowCount() == 4, timeout=20_000)
    assert cells(dialog)[0][:2] == ["4", "on"]
    assert "4 cells under 3 seeds each: 12 runs" in dialog.total.text()
    qtbot.waitUntil(dialog.begin.isEnabled, timeout=20_000)
    dialog.seeds.setCurrentIndex(dialog.seeds.findData(2))
    dialog.seeds.activated.emit(1)
    assert not dialog.begin.isEnabled(), "what it says is not what is wished any more"
    qtbot.waitUntil(lambda: dialog.begin.text() == "Put 8 runs into the queue", timeout=20_000)
    dialog.begin.setFocus()
    QTest.keyClick(dialog.begin, Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: len(queue.read().entries) == 8, timeout=20_000)
    qtbot.waitUntil(lambda: window.tabs.current == "compare", timeout=20_000)
    assert not dialog.isVisible()
    assert len(window.studio.shown.keys) == 8
    screen = window.tabs.screens["compare"]
    qtbot.waitUntil(lambda: screen.experiments.count() == 1, timeout=20_000)
    finish_all()
    window.studio.history.refresh()
    qtbot.waitUntil(lambda: "2 of 2 finished" in margins(window)[0], timeout=20_000)
    assert [row[-1] for row in margins(window)[:2]] == ["Compared with", "No measurable difference"]
    assert margins(window)[2][-1].startswith("0.0125 lower ± less than 0.0001 over 2 seeds")
    window.studio.shown.show(window.studio.shown.keys[3])
    assert ("cells", "Compare its experiment") in window.head.offered
    window.head.menu_asked.emit("cells")
    assert window.tabs.current == "compare"
    assert len(window.studio.shown.keys) == 8


def finish_all() -> None:
    """Loss by seed and rank alone: the switch changes nothing."""
    for path in (path for row in sweep.find(sweep.all_ids()[0]).runs for path in row):
        folder = RunFolder(path)
        config = folder.asked()[0]
        loss = 1 + random.Random(config.training.seed).random() + 0.1 / config.lora.rank
        folder.update(state="finished", loss_after=loss, best_loss=loss)
        queue.finish(Path(path).resolve(), "finished")


def margins(window: MainWindow) -> list[list[str]]:
    table = window.tabs.screens["compare"].experiments.itemAt(0).widget().findChild(type(window.tabs.screens["compare"].figures))  # fmt: skip
    return [
        [table.item(row, column).text() for column in range(table.columnCount())]
        for row in range(table.rowCount())
    ]


@pytest.mark.parametrize("stretch", [100, 140])
def test_the_dialog_fits_the_smallest_screen(qtbot: QtBot, make_window: MakeWindow, stretch: int) -> None:
    usual, font = QApplication.font(), QApplication.font()
    font.setLetterSpacing(font.SpacingType.PercentageSpacing, stretch)
    QApplication.setFont(font)
    try:
        _, dialog = asked(qtbot, make_window)
        choose(dialog, 0, "training.optimizer")
        choose(dialog, 1, "lora.targets")
        dialog.editors[0].boxes[1][1].click()
        qtbot.waitUntil(lambda: dialog.table.rowCount() == 2, timeout=20_000)
        for width in (780, 620):
            dialog.resize(width, 600)
            settle()
            seen = list(visible(dialog))
            assert not [*clipped(seen), *covered_or_outside(seen), *unnamed(seen)]
    finally:
        QApplication.setFont(usual)


def test_one_value_is_no_mistake_yet() -> None:
    """So the dialog opens: with the draft's own value, which others are to join."""
    with pytest.raises(EngineError) as refusal:
        experiment.asked(TrainingConfig(), Wish((("lora.rank", ("8",)),), 3))
    assert refused(refusal.value) == ExperimentState(total=TYPE_MORE)
