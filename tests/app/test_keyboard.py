"""A day's work by the keyboard alone: nothing here clicks, and no widget is told anything but keys."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor
from PySide6.QtTest import QTest
from PySide6.QtWidgets import (
    QAbstractButton,
    QApplication,
    QGridLayout,
    QLineEdit,
    QPlainTextEdit,
    QScrollArea,
    QSlider,
    QWidget,
)
from pytestqt.qtbot import QtBot

from app import theme
from app.tabs.data.widgets.rows_dialog import RowsDialog
from app.widgets.notes_dialog import NotesDialog
from app.widgets.prompt_dialog import PromptDialog
from app.widgets.tab_order import stops
from app.window import MainWindow
from qlora_engine import events as ev
from qlora_engine import paths
from qlora_engine.evaluate.prompt_sets import PromptSet
from qlora_engine.jobs import ChatJob, ExportJob, TrainJob
from qlora_engine.runs.notes import Notes
from tests.app import events_of_a_run as told
from tests.app.conftest import MakeWindow, ScriptedEngine, engine_of
from tests.app.focus_order import unseen
from tests.app.geometry import describe, visible
from tests.app.window_states import make_runs
from tests.support.hands import CTRL, KEY, SHIFT, Hands

OTHER = "llama-7b"


@pytest.fixture
def window(qtbot: QtBot, make_window: MakeWindow) -> MainWindow:
    make_runs()
    window = make_window(loads=True)
    window.activateWindow()
    qtbot.waitUntil(window.card.start.isEnabled, timeout=20_000)
    window.studio.workspace.job.edit("model.name", OTHER)  # of yesterday
    qtbot.waitUntil(lambda: QApplication.focusWidget() is not None)
    return window


def until(qtbot: QtBot, what: Callable[[], object]) -> None:
    qtbot.waitUntil(lambda: bool(what()), timeout=10_000)


def test_a_day_by_the_keyboard_alone(qtbot: QtBot, window: MainWindow) -> None:
    hands = Hands()
    set_up(qtbot, hands, window)
    train(qtbot, hands, window)
    compare(hands, window)
    hands.find("first-look")
    until(qtbot, lambda: window.studio.shown.state == "finished")
    chat(qtbot, hands, window)
    export(qtbot, hands, window)


def set_up(qtbot: QtBot, hands: Hands, window: MainWindow) -> None:
    """Pick a model, look at the rows, ask what a higher rank takes."""
    job = window.studio.workspace.job
    hands.press(KEY.Key_1, CTRL)
    assert window.tabs.current == "model"
    hands.tab_to("Models on this computer", QWidget)
    hands.press(KEY.Key_Home)
    hands.press(KEY.Key_Return)
    until(qtbot, lambda: job.config.model.name != OTHER)
    until(qtbot, lambda: window.studio.workspace.memory.own is not None)
    hands.press(KEY.Key_2, CTRL)
    assert window.tabs.current == "data"
    hands.tab_to("Source", QAbstractButton)
    hands.press(KEY.Key_Right)
    until(qtbot, lambda: window.tabs.screens["data"].stack.currentIndex() > 0)
    hands.press(KEY.Key_4, CTRL)
    assert window.tabs.current == "memory"
    rank = job.config.lora.rank
    hands.tab_to("Rank", QSlider)
    hands.press(KEY.Key_Right)
    until(qtbot, lambda: job.config.lora.rank > rank)


def train(qtbot: QtBot, hands: Hands, window: MainWindow) -> None:
    """Start, pause, go on, to the end."""
    run = window.studio.trainer
    until(qtbot, window.card.start.isEnabled)
    hands.press(KEY.Key_Return, CTRL)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(*told.whole_run(20))
    until(qtbot, lambda: run.run.step == 20)
    hands.press(KEY.Key_P, CTRL)
    until(qtbot, lambda: said(engine) == ["pause"])
    engine.tell(ev.Paused(20))
    until(qtbot, lambda: run.run.state == "paused")
    hands.press(KEY.Key_P, CTRL)
    until(qtbot, lambda: said(engine) == ["pause", "continue"])
    engine.tell(told.finished())
    until(qtbot, lambda: not run.is_running)


def compare(hands: Hands, window: MainWindow) -> None:
    """The last two of the list."""
    hands.press(KEY.Key_L, CTRL)
    hands.press(KEY.Key_End)
    hands.press(KEY.Key_Up, SHIFT)
    assert len(window.studio.shown.keys) == 2
    assert window.tabs.current == "compare"


def chat(qtbot: QtBot, hands: Hands, window: MainWindow) -> None:
    """Load the model, ask, read."""
    hands.find("chat")
    assert window.tabs.current == "chat"
    hands.tab_to("Load", QAbstractButton)
    hands.press(KEY.Key_Space)
    engine = engine_of(qtbot, ChatJob)
    engine.tell(ev.SessionReady({"sides": ["base", "tuned"]}))
    panel = window.tabs.screens["chat"].chat
    until(qtbot, panel.send.isEnabled)
    hands.tab_to("Your message", QPlainTextEdit)
    hands.type("Hello")
    hands.press(KEY.Key_Return)
    until(qtbot, lambda: [c.get("sides") for c in engine.commands] == [["base"], ["tuned"]])
    engine.tell(
        ev.AnswerFinished(1, "base", "Hi", 1, 0.2, True), ev.AnswerFinished(1, "tuned", "Yo", 1, 0.2, True)
    )
    until(qtbot, lambda: "Yo" in panel.columns.text.toPlainText())


def export(qtbot: QtBot, hands: Hands, window: MainWindow) -> None:
    """As it is proposed."""
    hands.find("export")
    assert window.tabs.current == "export"
    hands.tab_to("Prove it", QAbstractButton)
    hands.tab_to("Export", QAbstractButton)  # the heading of the tab, which is called the same
    hands.press(KEY.Key_Tab)
    hands.tab_to("Export", QAbstractButton)
    assert hands.at is window.tabs.screens["export"].export
    hands.press(KEY.Key_Space)
    assert isinstance(engine_of(qtbot, ExportJob).job, ExportJob)


def said(engine: ScriptedEngine) -> list[object]:
    return [next(iter(command.values()), None) for command in engine.commands]


WAYS = ("draft", "first-look")
"""Of the draft and of a run that has finished, every tab."""


@pytest.mark.parametrize("way", WAYS)
def test_tab_goes_through_everything_in_sight_of_whoever_presses_it(
    qtbot: QtBot, window: MainWindow, way: str
) -> None:
    until(qtbot, lambda: window.studio.history.summaries)
    found = next((s for s in window.studio.history.summaries if s.path.name == way), None)
    window.studio.shown.show(str(found.path) if found is not None else way)
    wrong = {}
    for name, tab in window.tabs.tabs.items():
        if window.tabs.kind in tab.of:
            window.go_to(name)
            qtbot.wait(100)
            wrong[name] = missed_by_tab(window) + unseen(window)
    assert not any(wrong.values()), wrong


def missed_by_tab(window: MainWindow) -> list[str]:
    """Controls in sight that Tab, from where it is, does not come to before it is where it began."""
    hands = Hands()
    there = {found for found in visible(window) if is_stop(found)}  # others may be enabled meanwhile
    hands.press(KEY.Key_Tab)
    began, passed, lost = hands.at, {hands.at}, []
    for _ in range(300):
        hands.press(KEY.Key_Tab)
        if hands.at.visibleRegion().isEmpty():
            lost.append(f"{describe(hands.at)} is out of sight")
        if hands.at is began:
            break
        passed.add(hands.at)
    assert hands.at is began, f"Tab never gets back; it is at {describe(hands.at)}"
    return lost + [describe(w) for w in visible(window) if w in there and is_stop(w) and w not in passed]


def is_stop(widget: QWidget) -> bool:
    """By Qt's own account; a page that scrolls is come to only where nothing in it is."""
    return (
        not isinstance(widget, QScrollArea)
        and widget.focusProxy() is None
        and widget.isEnabled()
        and bool(widget.focusPolicy() & Qt.FocusPolicy.TabFocus)
    )


def test_a_grid_is_read_line_by_line_however_it_was_filled(qtbot: QtBot) -> None:
    outer = QWidget()
    qtbot.addWidget(outer)
    grid, fields = QGridLayout(outer), [QLineEdit() for _ in range(4)]
    for place in (3, 0, 2, 1):
        grid.addWidget(fields[place], place // 2, place % 2)
    outer.show()
    assert stops(outer) == fields


def test_what_is_written_into_is_left_by_tab(qtbot: QtBot, window: MainWindow) -> None:
    """Also in the dialogs, where Save stands below it."""
    dialogs = (
        NotesDialog(window, "a-run", Notes(), lambda _: None),
        PromptDialog(window, "set", ["Hi"], lambda *_: PromptSet("set", ("Hi",))),
        RowsDialog(window, "rows", [("What?", "", "This.")]),
    )
    for dialog in dialogs:
        dialog.show()
        dialog.activateWindow()
        qtbot.waitUntil(dialog.isActiveWindow)
        Hands().tab_to("Cancel", QAbstractButton)
        dialog.close()


def test_a_table_is_filled_in_by_keys_alone(qtbot: QtBot, window: MainWindow) -> None:
    dialog, kept, hands = RowsDialog(window), list[object](), Hands()
    dialog.save_asked.connect(lambda name, rows: kept.append((name, rows)))
    dialog.show()
    dialog.activateWindow()
    qtbot.waitUntil(dialog.isActiveWindow)
    hands.tab_to("Name")
    hands.type("mine")
    hands.tab_to("Rows to learn from")
    for cell in ("What?", "Here", "This."):
        hands.type(cell)
        hands.press(KEY.Key_Tab)
    hands.press(KEY.Key_Escape)  # the cell that Tab went on to
    hands.tab_to("Keep rows", QAbstractButton)
    hands.press(KEY.Key_Space)
    assert kept == [("mine", [("What?", "Here", "This.")])]


def test_the_palette_has_an_edge_against_the_window(window: MainWindow) -> None:
    palette = window.commands.palette
    palette.ask(())
    picture = palette.grab().toImage()
    edge = QColor(theme.tokens().quiet)
    for x, y in ((0, 200), (picture.width() - 1, 200), (200, 0), (200, picture.height() - 1)):
        assert picture.pixelColor(x, y) == edge
    palette.hide()


def test_the_palette_does_what_the_head_offers(qtbot: QtBot, window: MainWindow) -> None:
    shown, asked = window.studio.shown, list[str]()
    until(qtbot, lambda: window.studio.history.summaries)
    halfway = next(s for s in window.studio.history.summaries if s.path.name == "halfway")
    shown.show(str(halfway.path))
    window.head.act_asked.disconnect()
    window.head.act_asked.connect(asked.append)
    Hands().find("resume")
    assert asked == ["resume"]
    shown.show("draft")
    window.commands.ask()
    words = [command.words for command in window.commands.offered()]
    assert words.count("Start training") == 1


def test_news_leave_the_place_in_the_list_of_models(qtbot: QtBot, window: MainWindow) -> None:
    work, screen = window.studio.workspace, window.tabs.screens["model"]
    folder = paths.models_dir() / "another"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    work.base.refresh()
    until(qtbot, lambda: screen.list.count() > 1)
    hands = Hands()
    hands.press(KEY.Key_1, CTRL)
    hands.tab_to("Models on this computer")
    hands.press(KEY.Key_End)
    place = screen.list.currentRow()
    assert place == screen.list.count() - 1
    window.tabs.controllers["model"].paint()
    assert screen.list.currentRow() == place


def test_a_second_enter_does_nothing_twice(qtbot: QtBot, window: MainWindow) -> None:
    palette, picked = window.commands.palette, list[str]()
    palette.picked.disconnect()
    palette.picked.connect(picked.append)
    window.commands.ask()
    for _ in range(2):
        QTest.keyClick(palette.search, Qt.Key.Key_Return)
    assert len(picked) == 1
