"""The queue in the window: when each run ends, its order, a time to begin at, and what became of the others."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app.presenters.waiting import Outlook, outlook, waiting_state, when_text
from app.widgets.queue_dialog import QueueDialog
from app.window import MainWindow
from qlora_engine.runs import outlook as engine
from qlora_engine.runs import plans, queue
from qlora_engine.runs.index import RunIndex
from qlora_engine.training import awake
from tests.app.conftest import MakeWindow
from tests.app.geometry import clipped, unnamed, visible
from tests.app.test_runs import opened
from tests.support.run_folders import config_of, write_run

NIGHT = time.mktime((2026, 3, 3, 22, 0, 0, 0, 0, -1))


@pytest.fixture(autouse=True)
def nobody_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_engine.runs.queue_runner.ensure_running", list)
    monkeypatch.setattr("qlora_engine.runs.queue_runner.places_here", lambda: ["cpu"])


def lined_up(*names: str) -> list[Path]:
    """Runs of an hour each, by what a finished one of the same model took."""
    done = write_run("done", [1.0] * 10, model__name="tiny")
    done.update(train_seconds=36_000.0, model={"name": "tiny"})
    folders = [
        plans.create(config_of(output__name=name, model__name="tiny", training__max_steps=1))
        for name in names
    ]
    for folder in folders:
        queue.add(folder)
    return [folder.path.resolve() for folder in folders]


def opened_queue(qtbot: QtBot, make_window: MakeWindow, *names: str) -> tuple[MainWindow, QueueDialog]:
    lined_up(*names)
    window = opened(qtbot, make_window, len(names) + 1)
    QTest.keyClick(window, Qt.Key.Key_J, Qt.KeyboardModifier.ControlModifier)
    dialog = window.queue.dialog
    assert dialog is not None
    qtbot.waitUntil(lambda: dialog.table.rowCount() == len(names), timeout=10_000)
    return window, dialog


def order() -> list[str]:
    return [entry.run_dir.name for entry in queue.read().entries]


def test_ends_are_told_by_the_clock() -> None:
    (first, second) = lined_up("a", "b")
    queue.start_at(NIGHT + 1800)
    seen = outlook(queue.read(), engine.forecast(queue.read(), RunIndex().entries(), NIGHT), NIGHT)
    state = waiting_state(seen, {str(first): "The first"}, NIGHT)
    assert state.headline == "2 runs in the queue: all is over about tomorrow 00:30."
    assert state.note.startswith("Nothing begins before 22:30.")
    assert [row.cells for row in state.rows] == [
        ("1", "The first", "Any device", "22:30", "23:30"),
        ("2", "b", "Any device", "23:30", "tomorrow 00:30"),
    ]
    queue.finish(first, "failed", "no rows")
    queue.finish(second, "gone")
    over = waiting_state(Outlook(queue.read()), {}, NIGHT)
    assert over.headline.startswith("Nothing waits.")
    assert [(one[0], one[1]) for one in over.done] == [("b", "Deleted"), ("a", "Failed")]
    assert over.done[1][2].endswith(": no rows")
    assert when_text(NIGHT + 200_000, NIGHT).startswith("2026-03-0")


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("", "is kept awake until then."),
        ("nobody can be asked", "may go to sleep before: nobody can be asked."),
    ],
)
def test_whether_the_computer_is_awake_when_the_queue_begins_is_told(
    reason: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awake, "why_not", lambda: reason)
    lined_up("a")
    queue.start_at(NIGHT + 1800)
    seen = outlook(queue.read(), engine.forecast(queue.read(), (), NIGHT), NIGHT)
    assert waiting_state(seen, {}, NIGHT).note.endswith(words)


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    queue.add(plans.create(config_of(output__name="a")))
    queue.pause()
    seen = outlook(queue.read(), engine.forecast(queue.read(), (), NIGHT), NIGHT)
    state = waiting_state(seen, {}, NIGHT)
    assert state.headline == "1 run in the queue: when it is over is not known."
    assert state.rows[0].cells[3:] == ("n/a", "n/a")
    assert state.pause_text == "Go on with the queue"
    assert "pauses" in state.note


def test_the_queue_is_ordered_paused_and_put_off_by_keyboard(qtbot: QtBot, make_window: MakeWindow) -> None:
    window, dialog = opened_queue(qtbot, make_window, "a", "b", "c")
    dialog.table.setFocus()
    QTest.keyClick(dialog.table, Qt.Key.Key_Down)
    QTest.keyClick(dialog.table, Qt.Key.Key_Down)
    assert dialog.chosen.endswith("/c")
    dialog.moves["first"].setFocus()
    QTest.keyClick(dialog.moves["first"], Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: order() == ["c", "a", "b"], timeout=10_000)
    qtbot.waitUntil(lambda: dialog.table.item(0, 1).text() == "c", timeout=10_000)
    assert dialog.chosen.endswith("/c"), "it stays chosen where it went"
    dialog.moves["later"].click()
    qtbot.waitUntil(lambda: order() == ["a", "c", "b"], timeout=10_000)
    dialog.moves["remove"].click()
    qtbot.waitUntil(lambda: order() == ["a", "b"], timeout=10_000)
    dialog.time.setText("half past ten")
    dialog.hold.click()
    assert "no time of the day" in dialog.notice.text
    assert queue.read().not_before_unix is None
    dialog.time.setText("3:30")
    dialog.hold.click()
    qtbot.waitUntil(lambda: queue.read().not_before_unix == engine.next_time("3:30"), timeout=10_000)
    qtbot.waitUntil(lambda: "Nothing begins before" in dialog.note.text(), timeout=10_000)
    assert not dialog.notice.text
    dialog.at_once.click()
    qtbot.waitUntil(lambda: queue.read().not_before_unix is None, timeout=10_000)
    dialog.pause.click()
    qtbot.waitUntil(lambda: dialog.pause.text() == "Go on with the queue", timeout=10_000)
    rows = {row.name: row.state_text for row in window.runs.model.rows}
    assert rows["a"] == "Queued, place 1", "a queue that pauses has no end"
    dialog.pause.click()
    ends = {f"ends {when_text(time.time() + 3600 + more, time.time())}" for more in range(-60, 181, 30)}
    qtbot.waitUntil(
        lambda: any(end in row.state_text for row in window.runs.model.rows for end in ends), timeout=10_000
    )


@pytest.mark.parametrize("stretch", [100, 140])
def test_the_dialog_fits_the_smallest_screen(qtbot: QtBot, make_window: MakeWindow, stretch: int) -> None:
    font = QApplication.font()
    usual, font = font, QApplication.font()
    font.setLetterSpacing(font.SpacingType.PercentageSpacing, stretch)
    QApplication.setFont(font)
    try:
        window, dialog = opened_queue(qtbot, make_window, "a", "b")
        queue.start_at(time.time() + 9000)
        window.studio.outlook.look()
        qtbot.waitUntil(lambda: "Nothing begins" in dialog.note.text(), timeout=10_000)
        dialog.resize(760, 560)
        QApplication.processEvents()
        seen = list(visible(dialog))
        assert not clipped(seen)
        assert not unnamed(seen)
        assert dialog.width() <= 1024
        assert dialog.height() <= 632
    finally:
        QApplication.setFont(usual)
