"""The Data page: what it says of a file, what a click changes, and that the run card says what the start would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytestqt.qtbot import QtBot

from app.window import MainWindow
from qlora_engine import events as ev
from qlora_engine.config import DataSettings
from qlora_engine.data import reading_check
from qlora_engine.errors import EngineError
from qlora_engine.jobs import DataDeskJob, DataReportJob
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
