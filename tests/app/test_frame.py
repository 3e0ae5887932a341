"""The window's frame: closing, questions, the keyboard."""

from __future__ import annotations

from itertools import pairwise

import pytest
from PySide6.QtCore import QPoint, QTimer
from PySide6.QtWidgets import QAbstractButton, QApplication, QMessageBox, QPushButton
from pytestqt.qtbot import QtBot

from app import dialogs
from app.presenters.run_fold import RunFold
from app.tab import DRAFT
from app.tabs import all_tabs
from app.widgets.tab_order import stops
from app.window import FOLD_BELOW, MainWindow
from qlora_engine import events as ev
from tests.app import events_of_a_run as told
from tests.app.acts import answer_with
from tests.app.conftest import MakeWindow
from tests.app.live_runs import LEFT, training


def press(window: MainWindow, caption: str) -> None:
    next(b for b in window.banner.findChildren(QPushButton) if b.text() == caption and b.isVisible()).click()


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


def test_what_a_failed_test_leaves_running_asks_nobody(
    qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("app.frame.closing.ask_close", lambda *_: asked.append(1) or dialogs.KEEP)
    window = make_window()
    training(qtbot, window)
    window.close()
    assert asked, "a person is asked"
    assert window.isVisible()
    asked.clear()
    for found, before in request.node.qt_widgets:
        if found() is window:
            before(window)
    window.close()
    assert not asked
    assert not window.isVisible()


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
