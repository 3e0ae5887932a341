"""Hundreds of random acts over a live run: no crash, no hang, no lost run. `make test-window` does thousands."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from pytestqt.qtbot import QtBot

from qlora_engine.jobs import TrainJob
from tests.app import events_of_a_run as told
from tests.app.conftest import MakeWindow, ScriptedEngine, engine_of
from tests.app.window_states import make_runs
from tests.app.window_storm import Storm

ACTS = int(os.environ.get("QLORA_STORM", "300"))
SEED = int(os.environ.get("QLORA_STORM_SEED", "0")) or int(time.time() // 86_400)
"""Another storm each day; the message of a failure tells how to repeat it."""


def test_nothing_a_hand_can_do_harms_a_run(
    qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("getOpenFileName", "getSaveFileName"):
        monkeypatch.setattr(f"PySide6.QtWidgets.QFileDialog.{name}", lambda *_, **__: ("", ""))
    monkeypatch.setattr("PySide6.QtWidgets.QFileDialog.getExistingDirectory", lambda *_: "")
    monkeypatch.setattr("PySide6.QtGui.QDesktopServices.openUrl", lambda *_: True)
    monkeypatch.setattr("qlora_engine.runs.queue_runner.ensure_running", list)
    make_runs()
    window = make_window(loads=True)
    qtbot.waitUntil(window.card.start.isEnabled, timeout=20_000)
    window.steering.start()
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.plan(100_000))
    step = 0

    def train() -> None:
        nonlocal step
        step += 1
        engine.tell(told.step(step, 100_000, loss=1.0))

    storm = Storm(window, SEED)
    storm.rage(ACTS, train)
    repeat = f"repeat with QLORA_STORM={ACTS} QLORA_STORM_SEED={SEED}; last: {storm.done[-12:]}"
    trainer = window.studio.trainer
    qtbot.waitUntil(lambda: trainer.run.step == step, timeout=20_000)
    assert trainer.is_running, repeat
    assert engine.stops == [], repeat
    assert len(window.studio.history.summaries) >= 4, repeat
    began = time.process_time()
    for tab in ("model", "live", "chat", "files"):
        window.go_to(tab)
        qtbot.wait(1)
    assert time.process_time() - began < 4.0, f"the window no longer answers; {repeat}"
    for made in ScriptedEngine.made:
        made.tell(told.finished())
    qtbot.waitUntil(lambda: not trainer.is_running, timeout=10_000)
