"""Names of models, data and runs are anybody's: wherever one is shown it is shown as it is written, never as markup."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from PySide6 import QtGui
from PySide6.QtCore import Qt
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QAbstractButton, QAbstractItemView, QLabel, QMessageBox, QTextBrowser, QWidget
from pytestqt.qtbot import QtBot

from app import dialogs
from app.presenters.words import capital
from app.tabs import all_tabs
from app.widgets.kit import as_written
from app.window import MainWindow
from qlora_engine import events as ev
from tests.app import events_of_a_run as told
from tests.app import try_states
from tests.app.conftest import MakeWindow

ROOT = Path(__file__).resolve().parents[2]
EVIL = "<b>evil&co"
RAW = "<b>evil"


def interpreted(window: QWidget) -> Iterator[str]:
    """Every place that shows the evil name as something else."""
    for widget in [window, *window.findChildren(QWidget)]:
        if _is_markup(widget.toolTip()):
            yield f"tooltip of {widget}: {widget.toolTip()!r}"
        if (
            isinstance(widget, QLabel)
            and RAW in widget.text()
            and widget.textFormat() != Qt.TextFormat.PlainText
        ):
            yield f"label {widget.text()!r}"
        if isinstance(widget, QAbstractButton) and "evil" in widget.text() and "&&co" not in widget.text():
            yield f"button {widget.text()!r}"
        if (
            isinstance(widget, QTextBrowser)
            and "evil" in widget.toPlainText()
            and RAW not in widget.toPlainText()
        ):
            yield f"text {widget.toPlainText()[:200]!r}"
        if isinstance(widget, QAbstractItemView) and widget.model() is not None:
            yield from _of_items(widget)
    for action in window.findChildren(QAction):
        if "evil" in action.text() and "&&co" not in action.text():
            yield f"action {action.text()!r}"
        if _is_markup(action.toolTip()):
            yield f"tooltip of the action {action.text()!r}"


def _of_items(view: QAbstractItemView) -> Iterator[str]:
    model = view.model()
    for row in range(model.rowCount()):
        for column in range(getattr(view, "columnCount", lambda: 1)()):
            tip = model.index(row, column).data(Qt.ItemDataRole.ToolTipRole)
            if _is_markup(str(tip or "")):
                yield f"tooltip of an item of {view.accessibleName()}: {tip!r}"


def _is_markup(tip: str) -> bool:
    return RAW in tip and QtGui.Qt.mightBeRichText(tip)


def evil_everywhere(window: MainWindow) -> None:
    """The name as model, data, run, prompt and answer, in a run that was told, and in everything it keeps."""
    for name in (EVIL, f"{EVIL} 2"):
        run = try_states.make_run(name)
    work, trainer = window.studio.workspace, window.studio.trainer
    work.job.edit("data.path", f"/data/{EVIL}.jsonl")
    work.job.edit("output.name", EVIL)
    trainer.run.begin()
    for event in (ev.RunStarted(EVIL, f"/runs/{EVIL}", 1, False, told.BEGAN, 0), told.plan(), told.step(1),
                  ev.Noticed("warning", "data.odd", f"{EVIL} is odd", f"look at {EVIL}"),
                  ev.RunFailed("model.odd", f"{EVIL} cannot be loaded", f"choose another than {EVIL}")):  # fmt: skip
        trainer.run.fold(event)
    window.announcer.tell_end(
        ev.RunFailed("model.odd", f"{EVIL} cannot be loaded", f"choose another than {EVIL}")
    )
    window.studio.history.refresh()
    window.go_to("chat")
    chat = window.tabs.controllers["chat"].chat
    chat.begin()
    chat.fold(ev.SessionReady(try_states.facts(run)))
    request = chat.ask(EVIL, chat.sides)
    for side in chat.sides:
        chat.fold(ev.AnswerFinished(request, side, EVIL, 2, 0.1, True))
    window.tabs.controllers["chat"].paint()


def test_no_name_is_taken_for_markup(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    evil_everywhere(window)
    window.studio.workspace.job.edit("model.name", f"org/{EVIL}")
    found: list[str] = []
    qtbot.waitUntil(lambda: len(window.studio.history.summaries) == 2, timeout=10_000)
    kept = str(window.studio.history.summaries[0].path)
    for key in ("draft", f"/runs/{EVIL}", kept):
        window.studio.shown.show(key)
        for tab in all_tabs():
            window.tabs.show(tab.name)
            for panel in {"chat": ("chat", "sets"), "held_out": ("rows", "timeline")}.get(tab.name, ("",)):
                if panel:
                    window.tabs.screens[tab.name].show_tab(panel)
                qtbot.wait(10)
                found += interpreted(window)
    assert not found, "\n".join(sorted(set(found)))
    seen = [w for w in window.findChildren(QLabel) if RAW in w.text()]
    assert len(seen) >= 5, "the name must be shown, else this test sees nothing"


def test_a_question_shows_names_as_they_are(qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    window = make_window()
    boxes: list[QMessageBox] = []
    monkeypatch.setattr(QMessageBox, "exec", lambda box: boxes.append(box) or 0)
    assert not dialogs.ask_delete(window, "Delete?", f"Delete {EVIL}?", f"{EVIL} is gone then", "Delete")
    assert not any(_is_markup(text) for text in (boxes[0].text(), boxes[0].informativeText()))


def test_markup_is_told_from_text() -> None:
    assert as_written("5 < 6 & 7") == "5 < 6 & 7"
    assert as_written(EVIL) == '<p style="white-space: pre-wrap">&lt;b&gt;evil&amp;co</p>'


ALLOWED = {
    "setToolTip": {"app/widgets/kit.py"},
    "setTextFormat": {"app/widgets/kit.py"},
    "QMessageBox": {"app/dialogs.py"},
    "setHtml": {"app/widgets/answers.py", "app/tabs/held_out/rows_panel.py"},
    "setInformativeText": {"app/dialogs.py"},
}
"""Who may use what Qt would take markup from: each of them is tried above."""


def test_tooltips_labels_and_questions_have_one_maker() -> None:
    found = []
    for file in sorted((ROOT / "app").rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            word = (
                node.attr
                if isinstance(node, ast.Attribute)
                else node.id
                if isinstance(node, ast.Name)
                else ""
            )
            if word in ALLOWED and name not in ALLOWED[word]:
                found.append(f"{name}:{node.lineno} {word}")
            is_label = (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "QLabel"
            )
            if is_label and name != "app/widgets/kit.py":
                found.append(f"{name}:{node.lineno} QLabel()")
    assert found == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the file is missing", "The file is missing"),
        ("meta-llama/Llama-3 is gated", "meta-llama/Llama-3 is gated"),
        ("gpt2 has no template", "gpt2 has no template"),
        ("data.seq_len is too long", "data.seq_len is too long"),
        ("mmap_threshold: no", "mmap_threshold: no"),
        ("held-out rows are few", "Held-out rows are few"),
        ("row 3: no answer", "Row 3: no answer"),
        ("", ""),
    ],
)
def test_ids_keep_their_case_at_the_beginning_of_a_sentence(text: str, shown: str) -> None:
    assert capital(text) == shown
