"""Watching a run that another owns, and asking its owner for something."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.events import (
    Event,
    MemorySampled,
    PhaseChanged,
    Progressed,
    RunFailed,
    RunFinished,
    RunLeft,
    RunStopped,
    StepFinished,
)
from qlora_engine.monitor.trace import encode as encode_sample
from qlora_engine.runs import commands, live
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.watch import Watch, WatchEngine
from tests.support.run_folders import add_checkpoint, step_event, write_run


@pytest.fixture
def running() -> Iterator[RunFolder]:
    folder = write_run("live", [2.0, 1.0], state="running")
    folder.claim()
    yield folder
    folder.release()


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_every_event_is_told_once_and_the_end_last(running: RunFolder) -> None:
    watch = Watch(running.run_id)
    assert kinds(watch.new()) == ["StepFinished"] * 2
    assert watch.new() == []
    now = live.LiveFile(running.path)
    now.note(PhaseChanged("training", "Training"))
    now.note(Progressed("tokenizing", 1, 2, "rows"))  # within the same second: not worth a write
    running.append(step_event(3, 9, 0.5))
    with running.metrics_path.open("a", encoding="utf-8") as file:
        file.write('{"event": "StepFin')
    with running.memory_path.open("ab") as trace:
        trace.write(encode_sample({"time": 1.0}) + b"\n")
    found = watch.new()
    assert kinds(found) == ["StepFinished", "PhaseChanged", "MemorySampled"]
    assert found[-1] == MemorySampled({"time": 1.0})
    assert watch.new() == []
    running.append(step_event(4, 9, 0.25))
    running.update(state="finished", loss_after=0.25)
    found = watch.new()
    assert kinds(found) == ["StepFinished", "RunFinished"]
    assert found[-1].result["loss_after"] == 0.25  # type: ignore[attr-defined]
    assert watch.new() == []
    assert live.read(running.path)
    now.close()
    assert live.read(running.path) == []


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("stopped", RunStopped),
        ("failed", RunFailed),
        ("crashed", RunFailed),
        ("running", RunFailed),
        ("planned", RunStopped),
    ],
)
def test_how_a_run_ended_is_told_as_its_engine_would(state: str, kind: type[Event]) -> None:
    folder = write_run("over", [1.0], state=state)
    if state == "failed":
        folder.update(error={"code": "data.empty", "message": "no rows", "hint": "add some"})
    add_checkpoint(folder, 1)
    end = Watch(folder.path).new()[-1]
    assert type(end) is kind
    if state == "failed":
        assert (end.code, end.message, end.hint) == ("data.empty", "no rows", "add some")  # type: ignore[attr-defined]
    if state == "running":
        assert "qlora resume over" in end.hint  # type: ignore[attr-defined]
    if state == "stopped":
        assert end.is_resumable  # type: ignore[attr-defined]


def test_only_what_is_new_where_history_is_not_wanted(running: RunFolder) -> None:
    watch = Watch(running.path, with_history=False)
    running.append(step_event(3, 9, 0.5))
    assert [event.step for event in watch.new() if isinstance(event, StepFinished)] == [3]


def test_the_owner_hears_what_others_ask(running: RunFolder) -> None:
    control = Control()
    commands.Inbox(running.path)
    (running.path / commands.COMMANDS_FILE).write_text(
        '{"command": "stop"}\n', encoding="utf-8"
    )  # of an earlier try
    with commands.listening(running.path, control):
        engine = WatchEngine(running.path)
        engine.send({"command": "evaluate"})
        engine.send({"command": "pause"})
        with (running.path / commands.COMMANDS_FILE).open("a", encoding="utf-8") as file:
            file.write('half a line\n{"command": "ask"}\n{"command": "stop", "mode": "rm"}\n')
        for _ in range(200):
            if control.is_pause_requested:
                break
            threading.Event().wait(0.02)
        assert control.is_pause_requested
        assert control.take_requests() == {"evaluate"}
        assert not control.is_stop_requested
        assert control.commands.empty()


def test_asking_whom_nobody_hears() -> None:
    folder = write_run("over", [1.0])
    with pytest.raises(EngineError, match="not being trained"):
        commands.send(folder.path, {"command": "pause"})
    with pytest.raises(EngineError, match="no command"):
        commands.send(folder.path, {"command": "ask"})
    WatchEngine(folder.path).request_stop()  # it ended a moment ago: no error
    with pytest.raises(EngineError, match="no run"):
        Watch(Path("/none"))


def test_an_engine_that_watches_ends_as_the_run_does_or_leaves(running: RunFolder) -> None:
    engine = WatchEngine(running.path)
    events = engine.run()
    assert [type(next(events)) for _ in range(2)] == [StepFinished] * 2
    engine.leave()
    assert list(events) == [RunLeft(str(running.path))]
    running.update(state="finished")
    assert isinstance(list(WatchEngine(running.path).run())[-1], RunFinished)
