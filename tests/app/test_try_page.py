"""Chat and Held-out as a person uses them: chat, prompt sets, held-out rows and the timeline, with scripted engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import Qt, QTimer
from PySide6.QtWidgets import QApplication, QMessageBox
from pytestqt.qtbot import QtBot

from app.widgets.prompt_dialog import PromptDialog
from app.window import MainWindow
from qlora_engine import events as ev
from qlora_engine.evaluate import answers, prompt_sets, replay_plan
from qlora_engine.evaluate.answers import StoredAnswer
from qlora_engine.jobs import ChatJob, PredictionsJob, ReplayJob, TrainJob
from qlora_engine.runs.record import RunFolder
from tests.app import try_states as told
from tests.app.conftest import MakeWindow, ScriptedEngine, engine_of

LEFT = Qt.MouseButton.LeftButton
BOOTS = told.BOOTS


class Panels:
    """The panels of both tabs, of which the one that is asked for comes into sight."""

    def __init__(self, window: MainWindow) -> None:
        self.window = window
        for name in ("held_out", "chat"):
            window.go_to(name)
        screens = window.tabs.screens
        self.chat, self.sets = screens["chat"].chat, screens["chat"].sets
        self.held_out, self.timeline = screens["held_out"].held_out, screens["held_out"].timeline

    def show(self, tab: str, panel: str) -> None:
        self.window.go_to(tab)
        self.window.tabs.screens[tab].show_tab(panel)


def open_page(qtbot: QtBot, make_window: MakeWindow, runs: int) -> tuple[MainWindow, Panels]:
    """With the newest run chosen, if there is one."""
    window = make_window()
    window.studio.history.refresh()
    qtbot.waitUntil(lambda: len(window.studio.history.summaries) == runs, timeout=10_000)
    if runs:
        window.studio.shown.show(str(window.studio.history.summaries[0].path))
    found = Panels(window)
    qtbot.waitUntil(lambda: not window.studio.background.is_busy("bases"), timeout=10_000)
    return window, found


def load_chat(qtbot: QtBot, screen: Panels, facts: dict[str, Any]) -> ScriptedEngine:
    qtbot.mouseClick(screen.chat.load, LEFT)
    engine = engine_of(qtbot, ChatJob)
    engine.tell(ev.PhaseChanged("loading", "Loading"), ev.SessionReady(facts))
    qtbot.waitUntil(screen.chat.send.isEnabled)
    return engine


def say(qtbot: QtBot, screen: Panels, text: str) -> None:
    qtbot.keyClicks(screen.chat.prompt, text)
    qtbot.keyClick(screen.chat.prompt, Qt.Key.Key_Return)


def test_a_chat_streams_both_sides(qtbot: QtBot, make_window: MakeWindow) -> None:
    window, screen = open_page(qtbot, make_window, 0)
    engine = load_chat(qtbot, screen, {"sides": ["base", "tuned"]})
    say(qtbot, screen, "Hello")
    assert [c["sides"] for c in engine.commands] == [["base"], ["tuned"]]
    assert screen.chat.interrupt.isEnabled()
    engine.tell(
        ev.TokenStreamed(1, "base", "<b>Hi"), ev.AnswerFinished(1, "base", "<b>Hi", 2, 0.4, True),
        ev.AnswerFinished(1, "tuned", "Yo", 1, 0.2, True),
    )  # fmt: skip
    qtbot.waitUntil(screen.chat.send.isEnabled)
    assert "<b>Hi" in screen.chat.columns.text.toPlainText()
    assert "2 tokens \u00b7 5.0 tokens/s" in screen.chat.columns.text.toPlainText()
    assert "Yo" in screen.chat.columns.text.toPlainText()
    qtbot.mouseClick(screen.chat.close_button, LEFT)
    qtbot.waitUntil(lambda: not window.studio.jobs["chat"].is_running)


def test_runs_are_put_beside_the_first_and_taken_off_while_it_is_loaded(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    first, second = told.make_run("first", created=3.0), told.make_run("second", created=2.0)
    other = told.make_run("other", base="b")
    _, screen = open_page(qtbot, make_window, 3)
    entries = screen.chat.compare.entries
    assert entries[str(second.path)].isEnabled()
    assert not entries[str(other.path)].isEnabled()
    assert "another base" in entries[str(other.path)].toolTip()
    engine = load_chat(qtbot, screen, told.facts(first))
    entries[str(second.path)].trigger()
    assert engine.commands == [{"command": "add_adapter", "run_dir": str(second.path)}]
    engine.tell(ev.SidesChanged(told.facts(first, second)))
    qtbot.waitUntil(lambda: "second" in screen.chat.columns.titles)
    assert screen.chat.compare.text() == "Compare with (2)"
    say(qtbot, screen, "Hello")
    assert [c["sides"] for c in engine.commands[1:]] == [["base"], ["tuned"], ["second"]]
    engine.tell(*(ev.AnswerFinished(1, side, "hi", 1, 0.1, True) for side in ("base", "tuned", "second")))
    qtbot.waitUntil(screen.chat.send.isEnabled)
    screen.chat.compare.entries[str(second.path)].trigger()
    assert engine.commands[-1] == {"command": "remove_adapter", "side": "second"}
    engine.tell(ev.SidesChanged(told.facts(first)))
    qtbot.waitUntil(lambda: "second" not in screen.chat.columns.titles)
    screen.chat.compare.entries[""].trigger()  # the base needs no asking
    say(qtbot, screen, "Again")
    assert [c["sides"] for c in engine.commands[-1:]] == [["tuned"]]
    assert "base" not in screen.chat.columns.titles


def test_a_run_that_cannot_join_says_why_and_is_not_shown_as_joined(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    first, second = told.make_run("first", created=3.0), told.make_run("second")
    _, screen = open_page(qtbot, make_window, 2)
    screen.chat.compare.entries[str(second.path)].trigger()  # chosen before it is loaded: it joins then
    engine = load_chat(qtbot, screen, told.facts(first))
    qtbot.waitUntil(lambda: bool(engine.commands))
    assert engine.commands == [{"command": "add_adapter", "run_dir": str(second.path)}]
    engine.tell(
        ev.Noticed("warning", "chat.adapter", "its adapter does not fit", "choose another"),
        ev.SidesChanged(told.facts(first)),
    )
    qtbot.waitUntil(lambda: not screen.chat.compare.entries[str(second.path)].isChecked())
    assert screen.chat.status.text() == "Its adapter does not fit. Choose another"


def test_every_side_is_asked_with_the_same_settings(qtbot: QtBot, make_window: MakeWindow) -> None:
    first, second = told.make_run("first", created=3.0), told.make_run("second")
    _, screen = open_page(qtbot, make_window, 2)
    engine = load_chat(qtbot, screen, told.facts(first, second, dora=True))
    drawing = screen.chat.drawing
    assert not drawing.fields["top_p"].isEnabled()
    drawing.sampling.setChecked(True)
    for name, text in (
        ("max_new_tokens", "64"),
        ("temperature", "0.9"),
        ("top_p", "7"),
        ("top_k", "20"),
        ("seed", "5"),
    ):
        drawing.fields[name].setText(text)
    drawing.strength.setValue(drawing.strength.maximum())
    drawing.system.setPlainText("Be short")
    say(qtbot, screen, "Hello")
    expected = {
        "do_sample": True, "max_new_tokens": 64, "seed": 5, "temperature": 0.9, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.0,
    }  # fmt: skip
    base, tuned, other = (c["settings"] for c in engine.commands)
    assert base == tuned == expected  # no strength to turn on the base, nor on DoRA; 7 is no top-p
    assert other == {**expected, "adapter_strength": 1.5}
    assert all(c["messages"][0] == {"role": "system", "content": "Be short"} for c in engine.commands)


def test_a_tool_is_defined_its_calls_are_seen_and_its_result_goes_to_who_called(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    first = told.make_run("first")
    _, screen = open_page(qtbot, make_window, 1)
    engine = load_chat(qtbot, screen, told.facts(first))
    panel = screen.chat
    panel.drawing.tools_box.setPlainText("{")
    say(qtbot, screen, "Weather in Rome?")
    assert not engine.commands
    assert "no JSON" in panel.status.text()
    panel.drawing.tools_box.setPlainText('{"name": "weather"}')
    say(qtbot, screen, "Weather in Rome?")
    assert [c["tools"] for c in engine.commands] == [[{"name": "weather"}]] * 2
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"town": "Rome"}}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call, call]}
    calls = ({"name": "weather", "arguments": {"town": "Rome"}},) * 2
    assert panel.result.isHidden()
    engine.tell(
        ev.AnswerFinished(1, "base", "I do not know", 3, 0.1, True),
        ev.AnswerFinished(1, "tuned", "", 9, 0.1, True, calls, turn),
    )
    qtbot.waitUntil(lambda: not panel.result.isHidden())
    assert 'calls weather(town="Rome")' in panel.columns.text.toPlainText()
    for text, status in (("sun", "1 of 2 results given"), ("wind", "Answering")):
        panel.prompt.setPlainText(text)
        panel.result.click()
        assert panel.status.text() == status
    asked = engine.commands[2:]
    assert [c["sides"] for c in asked] == [["tuned"]]
    assert asked[0]["messages"][1:] == [
        turn, {"role": "tool", "content": "sun"}, {"role": "tool", "content": "wind"}
    ]  # fmt: skip


def test_the_strength_is_marked_where_it_is_as_trained(qtbot: QtBot, make_window: MakeWindow) -> None:
    _, screen = open_page(qtbot, make_window, 0)
    slider = screen.chat.drawing.strength
    assert slider.place_of(20) - slider.place_of(0) == pytest.approx(
        2 / 3 * (slider.place_of(30) - slider.place_of(0)), abs=1
    )
    slider.setValue(0)
    assert screen.chat.drawing.strength_text.text() == "0.00 (off: the base)"


def test_nothing_is_tried_while_a_run_is_training(qtbot: QtBot, make_window: MakeWindow) -> None:
    told.keep_predictions(told.make_run("first"))
    window, screen = open_page(qtbot, make_window, 1)
    qtbot.waitUntil(lambda: screen.sets.replay.isEnabled() and screen.held_out.score.isEnabled())
    engine = load_chat(qtbot, screen, told.facts(RunFolder(Path(window.studio.history.summaries[0].path))))
    window.steering.start()
    qtbot.waitUntil(lambda: bool(engine.stops))
    qtbot.waitUntil(lambda: not window.studio.jobs["chat"].is_running)
    window.studio.shown.show(str(window.studio.history.summaries[0].path))
    for offered in (screen.chat.load, screen.sets.replay, screen.held_out.score):
        assert not offered.isEnabled()
    qtbot.waitUntil(lambda: "A run is training now" in screen.held_out.notice.text)
    engine_of(qtbot, TrainJob).tell(ev.RunStopped("stopped by the user", False, {}))
    qtbot.waitUntil(screen.sets.replay.isEnabled)


# ---------------------------------------------------------------- prompt sets


class Filled(QTimer):
    """Fills in the next prompt dialog and saves it."""

    def __init__(self, name: str, text: str | None = None) -> None:
        super().__init__(interval=30)
        self.seen = ""
        self._name, self._text = name, text
        self.timeout.connect(self._look)
        self.start()

    def _look(self) -> None:
        dialog = QApplication.activeModalWidget()
        if isinstance(dialog, PromptDialog) and dialog.isVisible():
            self.stop()
            self.seen = dialog.prompts.toPlainText()
            dialog.name.setText("")
            dialog.save_button.click()
            assert "needs a name" in dialog.notice.text
            dialog.name.setText(self._name)
            if self._text is not None:
                dialog.prompts.setPlainText(self._text)
            dialog.save_button.click()


def test_sets_are_written_edited_imported_and_deleted(
    qtbot: QtBot, make_window: MakeWindow, tmp_path: Path
) -> None:
    window, screen = open_page(qtbot, make_window, 0)
    screen.show("chat", "sets")
    panel, controller = screen.sets, window.tabs.controllers["chat"].sets
    assert (panel.sets.currentText(), panel.delete.isEnabled()) == ("starter (3)", False)
    copied = Filled("mine", "one\ntwo\\nlines")
    qtbot.mouseClick(panel.edit, LEFT)
    assert BOOTS in copied.seen
    assert prompt_sets.find("mine").prompts == ("one", "two\nlines")
    assert panel.sets.currentText() == "mine (2)"
    renamed = Filled("yours")
    qtbot.mouseClick(panel.edit, LEFT)
    assert renamed.seen == "one\ntwo\\nlines"
    assert [s.name for s in prompt_sets.all_sets()] == ["starter", "yours"]
    file = tmp_path / "more.jsonl"
    file.write_text('{"label": 1}\n')
    controller.library.import_file(file)
    assert "line 1 of more.jsonl has no prompt" in panel.notice.text
    file.write_text('{"prompt": "three"}\n')
    imported = Filled("more")
    controller.library.import_file(file)
    assert imported.seen == "three"
    assert prompt_sets.find("more").prompts == ("three",)
    press("Delete set")
    qtbot.mouseClick(panel.delete, LEFT)
    assert [s.name for s in prompt_sets.all_sets()] == ["starter", "yours"]


def press(caption: str) -> None:
    """Presses a button of the next question."""
    timer = QTimer(QApplication.instance(), interval=30)

    def look() -> None:
        box = QApplication.activeModalWidget()
        if isinstance(box, QMessageBox):
            timer.stop()
            next(b for b in box.buttons() if b.text() == caption).click()

    timer.timeout.connect(look)
    timer.start()


def keep_answer(run: RunFolder, prompt: str, text: str, **settings: Any) -> None:
    plan = replay_plan.plan_of(ReplayJob((str(run.path),), (prompt,), settings, with_base=False))
    answers.keep(run, StoredAnswer(plan.cells[0].key, prompt, text, 3, 0.1, True, False, 1.0))


def test_a_replay_shows_kept_answers_at_once_and_asks_for_the_rest(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    first, second = told.make_run("first", created=3.0), told.make_run("second")
    keep_answer(first, BOOTS, "kept words", do_sample=False, max_new_tokens=128, repetition_penalty=1.0)
    window, screen = open_page(qtbot, make_window, 2)
    screen.show("chat", "sets")
    panel = screen.sets
    qtbot.waitUntil(lambda: panel.kept.text() == "1 of 6 answers are there; 5 to ask.")
    panel.runs.item(1).setCheckState(Qt.CheckState.Checked)
    qtbot.waitUntil(lambda: panel.kept.text() == "1 of 9 answers are there; 8 to ask.")
    headers = [panel.table.horizontalHeaderItem(i).text() for i in range(panel.table.columnCount())]
    assert headers == ["Prompt", "Base model", "first", "second"]
    assert [panel.table.item(0, i).text() for i in range(4)] == [BOOTS, "\u2013", "kept words", "\u2013"]
    assert "kept" in panel.table.item(0, 2).toolTip()
    qtbot.mouseClick(panel.replay, LEFT)
    engine = engine_of(qtbot, ReplayJob)
    assert isinstance(engine.job, ReplayJob)
    assert tuple(engine.job.run_dirs) == (str(first.path), str(second.path))
    engine.tell(
        ev.AnswerFinished(0, str(first.path), "kept words", 3, 0.1, True), ev.PhaseChanged("generating", "Asking 8 questions"),
        ev.AnswerFinished(0, "base", "Sure", 9, 0.9, False), ev.Progressed("generating", 2, 9, "answers"),
    )  # fmt: skip
    qtbot.waitUntil(lambda: panel.table.item(0, 1).text() == "Sure")
    assert panel.table.item(0, 1).toolTip() == "9 tokens \u00b7 10.0\u00a0tokens/s \u00b7 cut"
    assert panel.working.isVisible()
    qtbot.mouseClick(panel.working.stop, LEFT)
    qtbot.waitUntil(lambda: not window.studio.jobs["chat"].is_running)
    assert panel.table.item(0, 1).text() == "Sure"
    assert panel.replay.isEnabled()
    assert not panel.working.isVisible()


def test_other_settings_are_other_answers(qtbot: QtBot, make_window: MakeWindow) -> None:
    first = told.make_run("first")
    keep_answer(first, BOOTS, "kept words", do_sample=False, max_new_tokens=128, repetition_penalty=1.0)
    _, screen = open_page(qtbot, make_window, 1)
    qtbot.waitUntil(lambda: screen.sets.kept.text().startswith("1 of 6"))
    assert screen.sets.settings.text() == "Greedy, at most 128 tokens."
    field = screen.chat.drawing.fields["max_new_tokens"]
    field.setText("64")
    field.editingFinished.emit()
    qtbot.waitUntil(lambda: screen.sets.kept.text().startswith("0 of 6"))
    assert screen.sets.settings.text() == "Greedy, at most 64 tokens."


def test_one_model_at_most_is_in_memory(qtbot: QtBot, make_window: MakeWindow) -> None:
    first = told.make_run("first")
    window, screen = open_page(qtbot, make_window, 1)
    chat = load_chat(qtbot, screen, told.facts(first))
    qtbot.waitUntil(screen.sets.replay.isEnabled)
    screen.sets.replay.click()
    qtbot.waitUntil(lambda: bool(chat.stops))
    engine_of(qtbot, ReplayJob)  # begins once the chat is gone
    qtbot.waitUntil(lambda: screen.chat.load.isVisibleTo(screen.chat))
    screen.held_out.score.click()
    engine = engine_of(qtbot, PredictionsJob)
    engine.tell(ev.RunFailed("held_out.other_data", "the dataset has changed", "put it back"))
    qtbot.waitUntil(lambda: not window.studio.jobs["chat"].is_running)
    assert screen.held_out.notice.text == "The dataset has changed"


def test_what_was_asked_becomes_a_prompt_set(qtbot: QtBot, make_window: MakeWindow) -> None:
    _, screen = open_page(qtbot, make_window, 0)
    assert not screen.chat.keep.isEnabled()
    load_chat(qtbot, screen, {"sides": ["base"]})
    say(qtbot, screen, "Hello")
    qtbot.waitUntil(screen.chat.keep.isEnabled)
    filled = Filled("talk")
    qtbot.mouseClick(screen.chat.keep, LEFT)
    assert filled.seen == "Hello"
    assert screen.sets.isVisible()
    assert screen.sets.sets.currentText() == "talk (1)"


# ---------------------------------------------------------------- held-out rows and timeline


def test_held_out_rows_are_scored_and_shown_expected_against_got(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    first = told.make_run("first")
    _, screen = open_page(qtbot, make_window, 1)
    screen.show("held_out", "rows")
    panel = screen.held_out
    qtbot.waitUntil(lambda: "not scored yet" in panel.notice.text)
    qtbot.mouseClick(panel.score, LEFT)
    engine = engine_of(qtbot, PredictionsJob)
    engine.tell(
        ev.PhaseChanged("evaluating", "Scoring 40 held-out rows"), ev.Progressed("evaluating", 10, 40, "rows")
    )
    qtbot.waitUntil(lambda: panel.working.bar.value() == 250)
    engine.tell(ev.RunFinished(told.predictions(first)))
    qtbot.waitUntil(lambda: panel.rows.isVisible())
    assert panel.summary.text().startswith(
        "40 held-out rows: mean loss 0.4490 per token; 31 predicted without a wrong token."
    )
    text = panel.rows.toPlainText()
    assert "Row 12 \u00b7 loss 1.204 per token" in text
    assert "first wrong token 18 of 21: \u201c30\u201d expected, \u201c00\u201d likelier" in text
    assert "08:00 <b>&" in text
    marked = panel.rows.toHtml()
    assert marked.count("text-decoration: underline") == 4  # what differs, on both sides of both rows
    panel.ends._buttons["best"].click()
    assert "Row 31" in panel.rows.toPlainText()
    assert "text-decoration: underline" not in panel.rows.toHtml()


def test_kept_predictions_are_there_at_once(qtbot: QtBot, make_window: MakeWindow) -> None:
    told.keep_predictions(told.make_run("first"))
    _, screen = open_page(qtbot, make_window, 1)
    qtbot.waitUntil(lambda: "40 held-out rows" in screen.held_out.summary.text())
    assert screen.held_out.score.text() == "Score again"


def test_the_timeline_shows_each_answer_in_order_also_while_training(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    first = told.make_run("first")
    window, screen = open_page(qtbot, make_window, 1)
    screen.show("held_out", "timeline")
    panel = screen.timeline
    qtbot.waitUntil(lambda: panel.table.rowCount() == 3)
    rows = [[panel.table.item(r, c).text() for c in range(3)] for r in range(3)]
    assert [row[0] for row in rows] == ["0, before training", "25", "50"]
    assert rows[2] == ["50", "0.06212", told.ANSWER]
    assert panel.summary.text() == "3 answers, 2 changes; what changed is bold."
    assert [panel.prompt.itemData(i) for i in range(panel.prompt.count())] == [BOOTS, "Say hi"]
    panel.prompt.activated.emit(1)
    assert panel.summary.text().startswith("3 answers, 0 changes")
    first.append(ev.SampleAnswered(75, "Say hi", "hello", 1, 0.1))
    window.studio.shown.fold.samples.append(ev.SampleAnswered(75, "Say hi", "hello", 1, 0.1))
    window.studio.shown.told.emit()
    qtbot.waitUntil(lambda: panel.table.rowCount() == 4)
    assert panel.asked.text() == "Asked: Say hi"
