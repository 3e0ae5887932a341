"""What other programs get of a run, and that the computer stays awake; both with stand-ins for what is not here."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.events import EvaluationFinished, Event, Noticed, RunFinished, RunStarted, RunStopped
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import awake
from qlora_engine.training.awake import kept_awake
from qlora_engine.training.trackers import FOLDER, tracked
from tests.support.run_folders import config_of, step_event


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(config_of(output__runs_dir=str(tmp_path / "runs"), output__name="one"))


def started(folder: RunFolder, from_step: int = 0) -> RunStarted:
    return RunStarted(folder.run_id, str(folder.path), 1, from_step > 0, 1.0, from_step)


def a_run(folder: RunFolder, from_step: int = 0, end: Event | None = None) -> Iterator[Event]:
    yield started(folder, from_step)
    for number in range(from_step + 1, from_step + 3):
        yield step_event(number, 4, 1.0 / number)
    yield EvaluationFinished(from_step + 2, 0.75, 10, 0.1, True, 1.0)
    yield end or RunFinished({})


def board(folder: RunFolder) -> list[list[Any]]:
    """The events of each event file, read record by record."""
    from tensorboardX.proto.event_pb2 import Event as BoardEvent

    found = []
    for path in sorted((folder.path / FOLDER).iterdir(), key=lambda p: p.stat().st_mtime_ns):
        content, at, events = path.read_bytes(), 0, []
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            events.append(BoardEvent.FromString(content[at + 12 : at + 12 + length]))
            at += 16 + length
        found.append(events)
    return found


def scalars(events: list[Any], tag: str) -> dict[int, float]:
    values = [(event.step, value) for event in events for value in event.summary.value if value.tag == tag]
    return {step: value.simple_value for step, value in values}


def test_tensorboard_files_are_always_written(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    events = list(tracked(a_run(folder), config_of(), folder))
    assert events == list(a_run(folder))
    (found,) = board(folder)
    assert scalars(found, "train/loss") == {1: 1.0, 2: 0.5}
    assert scalars(found, "held_out/loss") == {2: 0.75}
    assert scalars(found, "train/grad_norm") == {1: 1.5, 2: 1.5}
    assert scalars(found, "memory/peak_bytes") == {}
    monkeypatch.setattr("os.getpid", lambda: 12345)  # a resume is another process
    list(tracked(a_run(folder, from_step=1), config_of(), folder))
    assert [e.step for e in board(folder)[1] if e.HasField("session_log")] == [2]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder.path / FOLDER).iterdir())


class StandIn(types.ModuleType):
    """Any of the three clients: remembers what it was called with."""

    def __init__(self, name: str, broken: str = "") -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._broken = broken

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*values: Any, **named: Any) -> Any:
            self.calls.append((name, values, named))
            if name == self._broken:
                raise OSError("no network\nand much more")
            return types.SimpleNamespace(run_id="abc") if name == "info" else self

        return types.SimpleNamespace(run_id="abc") if name == "info" else call

    def named(self, name: str) -> list[Any]:
        return [(values, named) for called, values, named in self.calls if called == name]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_the_chosen_tracker_gets_every_number_of_the_output_tracker(
    name: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = StandIn(name)
    monkeypatch.setitem(sys.modules, name, client)
    config = config_of(output__tracker=name, output__tracker_project="mine", lora__rank=4)
    assert list(tracked(a_run(folder), config, folder)) == list(a_run(folder))
    logged = client.named("log_metrics" if name == "mlflow" else "log")
    assert [values[0]["train/loss"] for values, _ in logged[:2]] == [1.0, 0.5]
    assert logged[2][0][0]["held_out/loss"] == 0.75
    assert [named.get("step", values[0].get("step")) for values, named in logged] == [1, 2, 2]
    begun = client.named("set_experiment") if name == "mlflow" else client.named("init")
    assert "mine" in (*begun[0][0], begun[0][1].get("project"))
    assert len(client.named("end_run" if name == "mlflow" else "finish")) == 1
    if name == "mlflow":
        assert client.named("log_params")[0][0][0]["lora.rank"] == "4"
        assert client.named("end_run") == [((), {"status": "FINISHED"})]
        stopped = RunStopped("", is_resumable=True, result={})
        list(tracked(a_run(folder, 2, stopped), config, folder))
        assert client.named("start_run")[1] == ((), {"run_id": "abc"})
        assert client.named("end_run")[1] == ((), {"status": "KILLED"})
    else:
        assert begun[0][1]["config"]["lora"]["rank"] == 4
        assert (begun[0][1]["name"], begun[0][1]["resume"]) == ("one", "allow")


def test_a_tracker_that_is_not_installed_refuses_the_run_with_a_sentence(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(EngineError, match="trackio cannot be used") as caught:
        list(tracked(a_run(folder), config_of(output__tracker="trackio"), folder))
    assert "pip install trackio" in caught.value.hint


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(
    broken: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", StandIn("wandb", broken))
    events = list(tracked(a_run(folder), config_of(output__tracker="wandb"), folder))
    (notice,) = [event for event in events if isinstance(event, Noticed)]
    assert notice.message == "wandb takes no more of this run: no network"
    assert [event for event in events if event is not notice] == list(a_run(folder))
    assert scalars(board(folder)[0], "train/loss") == {1: 1.0, 2: 0.5}


@pytest.mark.parametrize(("error", "code"), [(Cancelled("x"), 0), (ZeroDivisionError("x"), 1)])
def test_a_run_that_breaks_off_closes_its_tracker(
    error: Exception, code: int, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[Event]:
        yield started(folder)
        raise error

    client = StandIn("wandb")
    monkeypatch.setitem(sys.modules, "wandb", client)
    with pytest.raises(type(error)):
        list(tracked(broken(), config_of(output__tracker="wandb"), folder))
    assert client.named("finish") == [((), {"exit_code": code})]


@pytest.mark.skipif(sys.platform != "linux", reason="the program that is stood in for is Linux's")
def test_the_computer_is_kept_awake_while_output_keep_awake_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    program = tmp_path / "systemd-inhibit"
    told = tmp_path / "told"
    program.write_text(f'#!/bin/sh\necho "$@" > {told}\nexec cat\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(awake, "BOOTED", tmp_path)
    real = awake._started
    monkeypatch.setattr(awake, "_started", lambda command: started.append(real(command)) or started[-1])  # type: ignore[func-returns-value, arg-type]
    with kept_awake(False):
        assert started == []
    with kept_awake(True, "one"):
        for _ in range(200):
            if told.exists() and told.read_text(encoding="utf-8"):
                break
            threading.Event().wait(0.01)
        assert started[0].poll() is None
    assert started[0].poll() is not None
    assert "--what=sleep" in told.read_text(encoding="utf-8")
    assert told.read_text(encoding="utf-8").rstrip().endswith("cat")
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with kept_awake(True):  # without the program there is nothing to hold
        assert started[1] is None


@pytest.mark.skipif(sys.platform != "linux", reason="the program that is stood in for is Linux's")
def test_why_the_computer_cannot_be_kept_awake_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A container has the program, and no systemd that it could ask: it would end at once, and nothing would be held."""
    program = tmp_path / "systemd-inhibit"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(awake, "BOOTED", tmp_path)
    assert awake.why_not() == "systemd-inhibit is not on this computer"
    program.write_text("#!/bin/sh\nexec cat\n", encoding="utf-8")
    program.chmod(0o755)
    assert awake.why_not() == ""
    monkeypatch.setattr(awake, "BOOTED", tmp_path / "none")
    assert "does not run on systemd" in awake.why_not()
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("nothing is to be started"))
    with caplog.at_level("INFO"), kept_awake(True):
        pass
    assert "may go to sleep during the run: this system does not run on systemd" in caplog.text
    monkeypatch.setattr(sys, "platform", "darwin")
    assert awake.why_not() == "caffeinate is not on this computer"
    monkeypatch.setattr(sys, "platform", "win32")
    assert awake.why_not() == ""


def test_macos_and_windows_have_their_own_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    wishes: list[int] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    command = awake._command("x")
    assert command[:3] == ["caffeinate", "-i", "-w"]
    kernel = types.SimpleNamespace(SetThreadExecutionState=wishes.append)
    monkeypatch.setattr(ctypes, "windll", types.SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    with kept_awake(True):
        for _ in range(200):
            if wishes:
                break
            threading.Event().wait(0.01)
        assert wishes == [0x80000001]
    assert wishes == [0x80000001, 0x80000000]
