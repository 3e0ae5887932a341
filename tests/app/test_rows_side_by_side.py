"""Held-out rows of the chosen runs in the comparison: read from what they keep, scored where they keep nothing."""

from __future__ import annotations

from pytestqt.qtbot import QtBot

from qlora_engine import events as ev
from qlora_engine.jobs import PredictionsJob
from tests.app.conftest import MakeWindow, engine_of
from tests.app.test_runs import choose, opened
from tests.support.scored_runs import finished, score

EVIL = "<b>bold</b>"


def test_what_is_missing_is_scored_one_run_after_another(qtbot: QtBot, make_window: MakeWindow) -> None:
    runs = {name: finished(name) for name in ("one", "two", "three")}
    score(runs["one"], {1: 0.5, 2: 1.25}, {1: EVIL, 2: "two"})
    window = opened(qtbot, make_window, 3)
    choose(window, "one", "two", "three")
    panel = window.tabs.screens["compare"].rows
    qtbot.waitUntil(lambda: panel.score.text() == "Score held-out rows of 2 runs", timeout=20_000)
    texts = panel.table.item(0, 0).text(), *(panel.table.item(0, n).text() for n in (1, 2, 3))
    assert texts[0].startswith("Row 1: What is 1?")
    assert sorted(texts[1:]) == ["Loss 0.5000\n\n" + EVIL, "Not scored", "Not scored"]
    panel.score.click()
    for count in (1, 2):
        engine = engine_of(qtbot, PredictionsJob)
        run = runs[engine.job.run_dir.rsplit("/")[-1]]
        assert engine.job.same
        qtbot.waitUntil(lambda r=run: r.run_id in panel.working.phase.text(), timeout=10_000)
        assert not panel.score.isEnabled()
        engine.tell(ev.RunFinished(score(run, {1: 0.75 * count, 2: 1.25}, {1: "right", 2: "two"})))
        qtbot.waitUntil(lambda e=engine: engine_of(qtbot, PredictionsJob) is not e or not window.studio.tryout.owner, timeout=10_000)  # fmt: skip
    qtbot.waitUntil(lambda: not panel.score.isVisible(), timeout=10_000)
    assert "2 rows that all scored runs held out" in panel.summary.text()
    heads = [panel.table.horizontalHeaderItem(n).text() for n in (1, 2, 3)]
    assert "one: 0.8750" in heads
    assert all("Not scored" not in panel.table.item(0, n).text() for n in (1, 2, 3))
    assert not panel.working.isVisible()


def test_a_run_that_cannot_be_scored_is_told_and_ends_it(qtbot: QtBot, make_window: MakeWindow) -> None:
    for name in ("one", "two"):
        finished(name)
    window = opened(qtbot, make_window, 2)
    choose(window, "one", "two")
    panel = window.tabs.screens["compare"].rows
    qtbot.waitUntil(lambda: panel.score.text() == "Score held-out rows of 2 runs", timeout=20_000)
    panel.score.click()
    engine = engine_of(qtbot, PredictionsJob)
    engine.tell(ev.RunFailed("held_out.other_data", "the data are others now", "bring them back"))
    qtbot.waitUntil(lambda: panel.notice.text == "The data are others now", timeout=10_000)
    qtbot.waitUntil(panel.score.isEnabled, timeout=10_000)
    assert engine_of(qtbot, PredictionsJob) is engine
