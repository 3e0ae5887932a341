"""The Data page: what it says of a file, what a click changes, and that the run card says what the start would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDropEvent, QImage, QPainter
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QComboBox, QPushButton
from pytestqt.qtbot import QtBot

from app import theme
from app.presenters.problems import problems_of
from app.tabs.data.controller import DataController
from app.tabs.data.presenters.report import Lengths
from app.tabs.data.presenters.rows import row_detail
from app.tabs.data.widgets.length_histogram import BOTTOM, GRIP, TOP, LengthHistogram
from app.tabs.data.widgets.token_chips import TokenChips, chip_fonts, paint_chip
from app.window import MainWindow
from qlora_engine import events as ev
from qlora_engine.config import DataSettings, all_knobs
from qlora_engine.data import own_rows, reading_check
from qlora_engine.data.preview import preview
from qlora_engine.errors import EngineError
from qlora_engine.jobs import DataDeskJob, DataReportJob
from tests.app import data_states
from tests.app.conftest import MakeWindow, ScriptedEngine, engine_of
from tests.engine.data.test_doctor import prepare, sharegpt
from tests.support.tiny import write_rows


def answer(qtbot: QtBot, topic: str, told: dict[str, Any]) -> dict[str, Any]:
    """Answer the newest question under `topic`, as the desk's engine; the question's command."""

    def found() -> tuple[ScriptedEngine, dict[str, Any]] | None:
        for engine in reversed(ScriptedEngine.made):
            mine = [c for c in engine.commands if c.get("topic") == topic]
            if isinstance(engine.job, DataDeskJob) and mine:
                return engine, dict(mine[-1])
        return None

    qtbot.waitUntil(lambda: found() is not None, timeout=10_000)
    known = found()
    assert known is not None
    engine, command = known
    engine.tell(ev.DataAnswered(command["request"], topic, told))
    return command


def report_of(path: Path, **settings: Any) -> dict[str, Any]:
    return prepare(path, is_look=True, **settings).report.to_json()


def told_problems(window: MainWindow) -> list[str]:
    work = window.studio.workspace
    error = work.watch.problem
    return [] if error is None else [error.message]


def test_the_card_the_check_and_the_start_say_the_same_of_a_bad_row(
    qtbot: QtBot, make_window: MakeWindow, tmp_path: Path
) -> None:
    bad = {n: {"conversations": [{"from": "narrator", "value": "x"}]} for n in (3, 4, 5)}
    file = write_rows(tmp_path / "talks.jsonl", sharegpt(6, bad))
    with pytest.raises(EngineError, match=r"talks\.jsonl, row 3: ") as start:
        prepare(file, bad_rows=0.4)
    checked = reading_check.check(DataSettings(path=str(file), bad_rows=0.4))
    assert checked[0]["text"] == start.value.message
    window = make_window()
    work = window.studio.workspace
    work.job.edit("data.path", str(file))
    work.watch.desk.ask("check", {}, work.watch._take_reading)  # as it does where the model is not here
    answer(qtbot, "check", {"findings": checked})
    qtbot.waitUntil(lambda: told_problems(window) == [start.value.message])
    assert not window.run_card.can_start
    work.watch.check()
    report = report_of(file, bad_rows=0.4)
    engine_of(qtbot, DataReportJob).tell(ev.RunFinished({"report": report, "rows": []}))
    qtbot.waitUntil(lambda: work.data.report is not None)
    assert told_problems(window) == [start.value.message]
    work.job.edit("data.bad_rows", 1.0)
    assert told_problems(window) == []


def page(window: MainWindow) -> tuple[DataController, dict[str, Any]]:
    window.go_to("data")
    controller: DataController = window.tabs.controllers["data"].page
    return controller, window.tabs.screens["data"].panels


def test_a_chosen_file_is_looked_at_and_its_columns_are_mapped_by_lists(
    qtbot: QtBot, make_window: MakeWindow, tmp_path: Path
) -> None:
    file = tmp_path / "fragen.csv"
    file.write_text("Frage;Antwort\nWie viel ist 1 + 1?;2\n", encoding="utf-8")
    window = make_window()
    work = window.studio.workspace
    _, panels = page(window)
    panel = panels["source"]
    panel.path_chosen.emit(str(file))
    asked = answer(qtbot, "preview", preview(DataSettings(path=str(file))))
    assert asked["config"]["data"]["path"] == str(file)
    qtbot.waitUntil(lambda: "instruction" in panel.mapping.combos)
    assert panel.found.text == "The columns Frage, Antwort fit no known format"
    combo = panel.mapping.combos["instruction"]
    assert [combo.itemText(i) for i in range(combo.count())] == ["Choose a column", "Frage", "Antwort"]
    combo.activated.emit(1)
    panel.mapping.combos["output"].activated.emit(2)
    assert work.job.config.data.columns == {"instruction": "Frage", "output": "Antwort"}
    qtbot.waitUntil(
        lambda: answer(qtbot, "preview", preview(work.job.config.data))["config"]["data"]["columns"] != {}
    )
    qtbot.waitUntil(lambda: panel.found.text.startswith("These look like: Alpaca"))
    assert panel.table.horizontalHeaderItem(1).text() == "Frage \u2192 Question or task"
    combo.activated.emit(0)
    assert work.job.config.data.columns == {"output": "Antwort"}


def test_dropped_files_become_the_dataset_and_what_is_mixed_in(make_window: MakeWindow) -> None:
    window = make_window()
    work = window.studio.workspace
    _, panels = page(window)
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile("/data/a.jsonl"), QUrl.fromLocalFile("/data/b.csv")])
    plain, left = Qt.KeyboardModifier.NoModifier, Qt.MouseButton.LeftButton
    window.tabs.screens["data"].dropEvent(
        QDropEvent(QPointF(9, 9), Qt.DropAction.CopyAction, mime, left, plain)
    )
    assert (work.job.config.data.path, work.job.config.data.more) == ("/data/a.jsonl", {"/data/b.csv": 1.0})
    box = panels["source"].sources.boxes["/data/b.csv"]
    box.setText("0.5")
    box.editingFinished.emit()
    assert work.job.config.data.more == {"/data/b.csv": 0.5}
    panels["source"].remove_asked.emit("/data/b.csv")
    assert work.job.config.data.more == {}


def test_rows_of_ones_own_are_kept_as_a_file_and_chosen(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    work = window.studio.workspace
    controller, panels = page(window)
    panels["source"].write.click()
    dialog = controller.tabs["source"].dialog  # type: ignore[attr-defined]
    dialog.table.set_rows([("What is 1 + 1?", "", "2"), ("What is 2 + 2?", "")])
    dialog.name.setText("sums")
    dialog.findChildren(QPushButton)[-1].click()
    qtbot.waitUntil(lambda: dialog.notice.text == "Row 2 lacks its question or its answer")
    dialog.table.set_rows([("4",)], at=1, across=2)
    dialog.findChildren(QPushButton)[-1].click()
    qtbot.waitUntil(lambda: work.job.config.data.path.endswith("sums.jsonl"))
    assert own_rows.read(Path(work.job.config.data.path)) == [
        ("What is 1 + 1?", "", "2"),
        ("What is 2 + 2?", "", "4"),
    ]
    with pytest.raises(EngineError, match="called sums already"):
        own_rows.write("sums", [("a", "", "b")])
    with pytest.raises(EngineError, match="cannot be the name"):
        own_rows.write("../up", [("a", "", "b")])


def test_a_finding_opens_its_row_and_one_click_mends_it(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    work = window.studio.workspace
    controller = data_states.read(window)
    controller.show_tab("doctor")
    panels = window.tabs.screens["data"].panels
    links = {b.text(): b for b in panels["doctor"].findChildren(QPushButton)}
    links["17"].click()
    assert window.tabs.screens["data"].current == "rows"
    asked = answer(qtbot, "row", data_states.full_row(17))
    assert asked["ask"] == {"of": "data", "number": 17}
    qtbot.waitUntil(lambda: panels["rows"].where.text().startswith("Row 17: "))
    assert panels["rows"].position.text() == "17 of 12,480 rows"
    links["Train them without their images"].click()
    assert work.job.config.data.ignore == ("images",)
    engine_of(qtbot, DataReportJob)  # and the data are read anew
    assert panels["doctor"].headline.text.startswith("From before the last change")


def test_what_is_to_mend_leads_to_the_tab_where_it_is_mended(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    data_states.read(window)
    problem = problems_of(window.studio.workspace.job.draft, None, window.studio.workspace.watch.problem)[0]
    window.go_to(problem.page, problem.path)
    screen = window.tabs.screens["data"]
    assert screen.current == "doctor"
    for path, tab in (("data.seq_len", "split"), ("data.max_rows", "source")):
        window.go_to("data", path)
        assert screen.current == tab
        qtbot.waitUntil(lambda p=path: window.focusWidget().accessibleName() == all_knobs()[p].label)  # type: ignore[misc]


def test_good_rows_are_kept_as_a_file_that_can_be_used(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    data_states.read(window).show_tab("doctor")
    panel = window.tabs.screens["data"].panels["doctor"]
    panel.write_asked.emit("/data/good.jsonl")
    assert panel.written.text == "Writing the rows"
    told = {"path": "/data/good.jsonl", "rows": 12_000, "left_out": 480}
    assert answer(qtbot, "write_clean", told)["ask"] == {"path": "/data/good.jsonl"}
    words = "Kept 12,000 rows in /data/good.jsonl; left 480 rows out"
    qtbot.waitUntil(lambda: panel.written.text == words)
    panel.written.findChild(QPushButton).click()
    assert window.studio.workspace.job.config.data.path == "/data/good.jsonl"
    assert panel.written.text == ""


def test_the_desk_answers_the_newest_question_and_says_when_its_engine_is_lost(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    desk = make_window().studio.workspace.watch.desk
    heard: list[object] = []
    desk.ask("row", {"number": 1}, heard.append)
    desk.ask("row", {"number": 2}, heard.append, heard.append)
    engine = engine_of(qtbot, DataDeskJob)
    qtbot.waitUntil(lambda: len(engine.commands) == 2)
    old, new = (command["request"] for command in engine.commands)
    engine.tell(ev.DataAnswered(old, "row", {"row": 1}), ev.DataAnswered(new, "row", {"row": 2}))
    qtbot.waitUntil(lambda: heard == [{"row": 2}])
    desk.ask("row", {"number": 99}, heard.append, heard.append)
    engine.tell(ev.DataAnswered(new + 1, "row", {}, {"code": "data.row", "message": "no row 99", "hint": ""}))
    qtbot.waitUntil(lambda: len(heard) == 2)
    assert str(heard[1]) == "no row 99"
    desk.ask("list", {}, heard.append, heard.append)
    engine.tell(ev.RunFailed("engine.died", "the engine ended", "again"))
    qtbot.waitUntil(lambda: len(heard) == 3)
    assert str(heard[2]) == "the engine ended; hint: again"
    desk.ask("row", {"number": 3}, heard.append)  # another engine
    qtbot.waitUntil(lambda: engine_of(qtbot, DataDeskJob) is not engine)


def test_rows_are_read_in_pages_as_they_come_into_sight(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    controller = data_states.read(window)
    controller.show_tab("rows")
    rows = window.tabs.screens["data"].panels["rows"]
    rows.list.scrollTo(rows.list.rows.index(9000, 0))
    qtbot.waitUntil(lambda: newest("list")["ask"]["first"] > 8000)
    asked = newest("list")["ask"]
    first = asked["first"]
    assert asked["count"] < 200
    answer(qtbot, "list", {"total": 12_480, "first": first, "rows": [data_states.row(n + 1) for n in range(first, first + asked["count"])]})  # fmt: skip
    qtbot.waitUntil(lambda: rows.list.rows.number(9000) == 9001)
    rows.kind_chosen.emit("longest")
    assert newest("list")["ask"] == {"of": "data", "kind": "longest", "first": 0, "count": 60}
    rows.search.setText("needle")
    rows.search.returnPressed.emit()
    assert newest("list")["ask"]["search"] == "needle"
    answer(qtbot, "list", {"total": 0, "first": 0, "rows": []})
    qtbot.waitUntil(lambda: rows.notice.text == "No row holds that text.")
    rows.search.clear()
    assert newest("list")["ask"]["kind"] == "longest"


def shown(combo: QComboBox) -> list[str]:
    return [combo.itemText(place) for place in range(combo.count())]


def choose(combo: QComboBox, words: str) -> None:
    combo.setCurrentIndex(combo.findText(words))
    combo.activated.emit(combo.currentIndex())


def test_a_held_out_file_is_browsed_searched_and_sorted_like_the_dataset(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    window = make_window()
    work = window.studio.workspace
    work.job.edit("data.held_out_path", "/data/held.jsonl")
    controller = data_states.read(window)
    controller.show_tab("rows")
    rows = window.tabs.screens["data"].panels["rows"]
    assert shown(rows.sets) == ["Training data", "Held-out data"]
    assert "Held out" not in shown(rows.kinds)
    choose(rows.sets, "Held-out data")
    assert newest("list")["ask"] == {"of": "held_out", "kind": "all", "first": 0, "count": 60}
    assert shown(rows.kinds)[:3] == ["All rows", "Held out", "Left out"]
    answer(qtbot, "list", {"total": 5, "first": 0, "rows": [data_states.row(n) for n in range(1, 6)]})
    qtbot.waitUntil(lambda: newest("row")["ask"] == {"of": "held_out", "number": 1})
    assert rows.position.text() == "1 of 5 held-out rows"
    rows.number.setText("4")
    rows.number.returnPressed.emit()
    assert newest("row")["ask"] == {"of": "held_out", "number": 4}
    choose(rows.kinds, "Most cut first")
    assert newest("list")["ask"] == {"of": "held_out", "kind": "most_cut", "first": 0, "count": 60}
    rows.search.setText("needle")
    rows.search.returnPressed.emit()
    assert newest("list")["ask"] == {"of": "held_out", "search": "needle", "first": 0, "count": 60}
    controller.open_row(17)  # what a finding names is a row of the dataset
    assert (rows.sets.currentText(), newest("list")["ask"]["of"]) == ("Training data", "data")


def test_a_share_that_is_held_out_is_browsed_by_the_numbers_of_the_dataset(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    window = make_window()
    window.studio.workspace.job.edit("data.path", "/data/a.jsonl")
    data_states.read(window).show_tab("rows")
    rows = window.tabs.screens["data"].panels["rows"]
    assert shown(rows.sets) == ["Whole dataset", "Held-out share"]
    assert "Held out" in shown(rows.kinds)
    choose(rows.sets, "Held-out share")
    assert shown(rows.kinds)[:2] == ["All rows", "Longest first"]
    answer(qtbot, "list", {"total": 2, "first": 0, "rows": [data_states.row(n) for n in (8, 30)]})
    qtbot.waitUntil(lambda: rows.position.text() == "1 of 2 held-out rows")
    rows.number.setText("9")
    rows.number.returnPressed.emit()
    assert newest("list")["ask"] == {"of": "data", "kind": "all", "first": 0, "count": 60}


def read_anew(qtbot: QtBot, window: MainWindow) -> None:
    """The engine that was asked last to read the data anew is done; those before it have been stopped."""
    left = window.studio.workspace.job.config.data.leave_out

    def asked() -> list[ScriptedEngine]:
        engines = [e for e in ScriptedEngine.made if isinstance(e.job, DataReportJob) and not e.stops]
        return [e for e in engines if e.job.config["data"].get("leave_out") == left]  # type: ignore[union-attr]

    qtbot.waitUntil(lambda: bool(asked()), timeout=10_000)
    asked()[-1].tell(ev.RunFinished({"report": data_states.report(), "rows": []}))
    qtbot.waitUntil(lambda: window.studio.workspace.data.report is not None)


def test_a_row_is_left_out_and_taken_back_where_it_is_seen(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    job = window.studio.workspace.job
    job.edit("data.path", "/data/a.jsonl")
    controller = data_states.read(window)
    controller.show_tab("rows")
    rows = window.tabs.screens["data"].panels["rows"]
    choose(rows.kinds, "Fewest trained first")
    answer(qtbot, "list", {"total": 9, "first": 0, "rows": [data_states.row(n) for n in range(31, 40)]})
    qtbot.waitUntil(lambda: rows.position.text() == "1 of 9 rows")
    rows.next.click()
    qtbot.waitUntil(lambda: newest("row")["ask"]["number"] == 32)
    assert rows.leave.text() == "Leave this row out"
    rows.leave.click()
    assert job.config.data.leave_out == "32"
    assert rows.leave.text() == "Take it back"
    assert rows.body.isVisible()  # the list stays while the data are read anew
    rows.next.click()
    qtbot.waitUntil(lambda: newest("row")["ask"]["number"] == 33)
    rows.leave.click()
    assert job.config.data.leave_out == "32-33"
    read_anew(qtbot, window)
    assert newest("list")["ask"]["kind"] == "fewest_trained"
    left = [data_states.row(n) for n in (31, 34, 35, 36, 37, 38, 39)]
    answer(qtbot, "list", {"total": 7, "first": 0, "rows": left})
    qtbot.waitUntil(lambda: rows.position.text() == "3 of 7 rows")  # where it was, not at the top
    controller.open_row(32)
    answer(qtbot, "list", {"total": 60, "first": 0, "rows": [data_states.row(n) for n in range(1, 61)]})
    qtbot.waitUntil(lambda: rows.leave.text() == "Take it back")
    rows.leave.click()
    assert job.config.data.leave_out == "33"
    job.edit("data.seq_len", 64)
    assert not rows.body.isVisible()  # of other settings the old rows say nothing


def test_rows_of_a_held_out_file_are_not_left_out_by_number(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    window.studio.workspace.job.edit("data.held_out_path", "/data/held.jsonl")
    data_states.read(window).show_tab("rows")
    rows = window.tabs.screens["data"].panels["rows"]
    assert rows.leave.isVisible()
    choose(rows.sets, "Held-out data")
    answer(qtbot, "list", {"total": 5, "first": 0, "rows": [data_states.row(n) for n in range(1, 6)]})
    qtbot.waitUntil(lambda: rows.position.text() == "1 of 5 held-out rows")
    assert not rows.leave.isVisible()


def test_one_click_leaves_out_what_a_finding_is_about(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    job = window.studio.workspace.job
    job.edit("data.leave_out", "4")
    controller = data_states.read(window)
    controller.show_tab("doctor")
    panel = window.tabs.screens["data"].panels["doctor"]

    def click(words: str) -> None:
        {b.text(): b for b in panel.findChildren(QPushButton)}[words].click()

    click("Leave these 3 rows out")
    assert job.config.data.leave_out == "3-4, 17, 4012"
    engine_of(qtbot, DataReportJob)  # and the data are read anew
    click("Take it back")
    assert job.config.data.leave_out == ""
    held = next(b for b in panel.findChildren(QPushButton) if b.accessibleName() == "Open row 2")
    held.click()
    assert window.tabs.screens["data"].current == "rows"
    assert window.tabs.screens["data"].panels["rows"].sets.currentText() == "Held-out data"


def test_numbers_to_leave_out_are_those_of_the_data_that_are_chosen(make_window: MakeWindow) -> None:
    window = make_window()
    job = window.studio.workspace.job
    data_states.read(window)
    (mixed,) = job.config.data.more
    panel = window.tabs.screens["data"].panels["source"]
    job.edit("data.leave_out", "5, 12001")
    panel.remove_asked.emit(mixed)
    assert job.config.data.leave_out == ""  # nobody knows where the rows of the source stood
    data_states.read(window)
    job.edit("data.leave_out", "5, 12001, 12481")
    window.studio.workspace.data.report = data_states.report()
    window.studio.workspace.data.changed.emit()
    panel.remove_asked.emit(mixed)
    assert job.config.data.leave_out == "5, 12001"
    panel.path_chosen.emit("/data/other.jsonl")
    assert (job.config.data.path, job.config.data.leave_out) == ("/data/other.jsonl", "")


def test_the_maximum_length_is_a_line_that_is_dragged(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    controller = data_states.read(window)
    controller.show_tab("report")
    panel = window.tabs.screens["data"].panels["report"]
    chart = panel.histogram
    assert (
        panel.keeps.text()
        == "384 tokens: keeps 93\u00a0% of rows whole, trains on 99\u00a0% of answer tokens"
    )
    at = [QPoint(round(chart.x_of(tokens)), 60) for tokens in (384, 256)]
    QTest.mousePress(chart, Qt.MouseButton.LeftButton, pos=at[0])
    QTest.mouseMove(chart, at[1])
    assert (
        panel.keeps.text()
        == "256 tokens: keeps 85\u00a0% of rows whole, trains on 98\u00a0% of answer tokens"
    )
    assert window.studio.workspace.job.config.data.seq_len is None
    QTest.mouseRelease(chart, Qt.MouseButton.LeftButton, pos=at[1])
    assert window.studio.workspace.job.config.data.seq_len == 256
    chart.setFocus()
    QTest.keyClick(chart, Qt.Key.Key_Left)
    QTest.keyClick(chart, Qt.Key.Key_Return)
    assert window.studio.workspace.job.config.data.seq_len == 248


@pytest.mark.parametrize("maximum", [8, 32, 48, 64, 80])
def test_the_maximum_is_told_beside_the_bars_and_covers_none(qtbot: QtBot, maximum: int) -> None:
    """Every bar is the highest, wherever the line is."""
    chart = LengthHistogram()
    qtbot.addWidget(chart)
    bars = tuple((start, start + 3, 7.0) for start in range(4, 80, 4))
    chart.show_lengths(Lengths(bars, (), 80, maximum, False, False))
    chart.resize(420, 216)
    picture = chart.grab().toImage()
    tokens = theme.tokens()
    for start, end, _ in bars:
        x = round((chart.x_of(start) + chart.x_of(end + 1)) / 2)
        if end <= maximum and abs(x - chart.x_of(maximum)) > GRIP:
            colours = {picture.pixelColor(x, y).name() for y in range(TOP + 1, chart.height() - BOTTOM - 2)}
            assert colours == {tokens.accent.lower()}, (start, end)


def test_tokens_say_what_they_are_to_mouse_keys_and_eye(qtbot: QtBot) -> None:
    chips = TokenChips()
    qtbot.addWidget(chips)
    chips.resize(400, 300)
    chips.show()
    detail = row_detail(data_states.full_row(1))
    chips.show_rows(detail.rendered)
    heard: list[str] = []
    chips.token_shown.connect(heard.append)
    QTest.keyClick(chips, Qt.Key.Key_Right)
    QTest.keyClick(chips, Qt.Key.Key_Right)
    assert heard[-1] == 'Token 1: "user". Position 1; user. Context: seen, not trained'
    token = chips.token_at(chips._laid.places[12].center())
    assert token is not None
    assert (token.shown, token.state, token.role) == ("A", "t", "assistant")
    pictures = set()
    for state in "tmspc":
        image = QImage(40, 22, QImage.Format.Format_Grayscale8)  # without its colours
        image.fill(0)
        paint_chip(QPainter(image), image.rect(), "Aa", state, chip_fonts())
        pictures.add(bytes(image.constBits()))
    assert len(pictures) == 5


def test_what_becomes_of_reasoning_is_chosen_beside_an_example(make_window: MakeWindow) -> None:
    window = make_window()
    data_states.read(window).show_tab("split")
    panel = window.tabs.screens["data"].panels["split"]
    assert panel.words["remove"].text().startswith("Thoughts before the last answer")
    assert panel.example_of.text() == "Row 12 of the data, as this model's template renders it"
    panel.policies["context"].click()
    assert window.studio.workspace.job.config.data.reasoning == "context"


def newest(topic: str) -> dict[str, Any]:
    """The newest question under `topic`; one without anything asked where there is none."""
    for engine in reversed(ScriptedEngine.made):
        for command in reversed(engine.commands):
            if command.get("topic") == topic:
                return dict(command)
    return {"ask": {"first": -1}}
