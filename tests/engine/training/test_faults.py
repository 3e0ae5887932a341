"""Faults from outside: killed engines, damaged checkpoints, full disks, terminals that go away."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError

from qlora_engine import config_io
from qlora_engine.client import InlineEngine, ProcessEngine
from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.events import (
    TERMINAL,
    CheckpointSaved,
    Noticed,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    StepFinished,
)
from qlora_engine.jobs import ResumeJob, TrainJob
from qlora_engine.runs import sealed
from qlora_engine.runs.record import LIVE_STATES, RunFolder
from qlora_engine.training import checkpoint, recipe
from qlora_engine.training.steps import HeldOutScore
from tests.engine.training.conftest import MakeConfig
from tests.engine.training.faulty_runs import engine_events, only_run
from tests.support import tiny_runs

LONG = {"training__max_steps": 2000, "training__eval_every_steps": 5000, "checkpoint__every_steps": 3}


def stopped_at(make_config: MakeConfig, step: int, **changes: Any) -> Path:
    """A run stopped after `step` of 6, with a checkpoint at every step before it."""
    config = make_config(
        training__max_steps=6, checkpoint__every_steps=1, checkpoint__keep=10, training__eval_every_steps=100,
        **changes,
    )  # fmt: skip
    control = Control()
    events = []
    for event in recipe.train(TrainJob(config_io.to_dict(config)), control):
        events.append(event)
        if isinstance(event, StepFinished) and event.step == step:
            control.request_stop()
    assert isinstance(events[-1], RunStopped)
    return tiny_runs.run_dir(events)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_killed_engine_loses_only_the_work_since_its_last_checkpoint(make_config: MakeConfig) -> None:
    config = make_config(**LONG)
    engine, seen = ProcessEngine(), []
    for event in engine.run(TrainJob(config_io.to_dict(config))):
        seen.append(event)
        if isinstance(event, StepFinished) and event.step == 8:
            assert only_run(config).state == "running"
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
    end = seen[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "engine.killed"
    assert end.exit_code == -signal.SIGKILL
    assert sum(isinstance(e, TERMINAL) for e in seen) == 1
    summary = only_run(config)
    assert (summary.state, summary.is_resumable) == ("crashed", True)
    newest = checkpoint.newest(RunFolder(summary.path))
    assert newest is not None
    last_step = max(e.step for e in tiny_runs.of(seen, StepFinished))
    assert last_step - 3 <= checkpoint.step_of(newest) <= last_step + 3  # it went on a little before it died
    resumed = tiny_runs_until_step(summary.path, 2)
    assert resumed[0] == checkpoint.step_of(newest) + 1
    assert only_run(config).state == "stopped"


def tiny_runs_until_step(run: Path, count: int) -> list[int]:
    """Resume in this process, stop after `count` steps; the steps done."""
    control, steps = Control(), []
    for event in recipe.resume(ResumeJob(str(run)), control):
        if isinstance(event, StepFinished):
            steps.append(event.step)
            if len(steps) == count:
                control.request_stop()
    return steps


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_an_engine_killed_while_loading_leaves_no_running_run(make_config: MakeConfig) -> None:
    config = make_config(**LONG)
    engine = ProcessEngine()
    for event in engine.run(TrainJob(config_io.to_dict(config))):
        if isinstance(event, RunStarted):
            engine.kill()
    summary = only_run(config)
    assert summary.state == "crashed"
    assert not summary.is_resumable
    with pytest.raises(EngineError, match="no checkpoint to go on from"):
        tiny_runs.resume(summary.path)


@pytest.mark.slow
def test_an_engine_whose_driver_vanished_saves_and_ends(make_config: MakeConfig) -> None:
    """As after a kill of the window: the pipe to the engine closes."""
    config = make_config(**LONG)
    engine = ProcessEngine()
    events = engine.run(TrainJob(config_io.to_dict(config)))
    for event in events:
        if isinstance(event, StepFinished) and event.step == 5:
            events.close()  # type: ignore[attr-defined]
            break
    summary = only_run(config)
    assert (summary.state, summary.is_resumable) == ("stopped", True)
    saved = [e for e in RunFolder(summary.path).metrics() if isinstance(e, CheckpointSaved)]
    assert saved[-1].reason == "orphaned"
    assert saved[-1].step >= 5


def test_a_half_written_checkpoint_is_no_checkpoint(make_config: MakeConfig) -> None:
    run = stopped_at(make_config, 3)
    folder = RunFolder(run)
    aside = folder.checkpoints_dir / ".step-9.1234.tmp"
    unmarked = folder.checkpoints_dir / "step-9"
    for path in (aside, unmarked):
        path.mkdir()
        (path / "adapter.safetensors").write_bytes(b"half")
    assert checkpoint.newest(folder) == folder.checkpoints_dir / "step-3"
    events = tiny_runs.resume(run)
    assert [e.step for e in tiny_runs.of(events, StepFinished)] == [4, 5, 6]
    (notice,) = [e for e in tiny_runs.of(events, Noticed) if e.code == "checkpoint.damaged"]
    assert "step-9" in notice.message
    assert "step-3" in notice.message
    assert not aside.exists()
    assert not unmarked.exists()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "adapter truncated": ("adapter.safetensors", truncate),
    "optimizer truncated": ("optimizer.safetensors", truncate),
    "adapter flipped": ("adapter.safetensors", flip),
    "optimizer flipped": ("optimizer.safetensors", flip),
    "random generators lost": ("rng.safetensors", Path.unlink),
    "position truncated": ("state.json", truncate),
    "position lost": ("state.json", Path.unlink),
    "mark lost": ("checkpoint.json", Path.unlink),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(
    make_config: MakeConfig, name: str, damage: Callable[[Path], None]
) -> None:
    run = stopped_at(make_config, 4)
    damage(run / "checkpoints" / "step-4" / name)
    events = tiny_runs.resume(run)
    assert tiny_runs.of(events, RunStarted)[0].from_step == 3
    assert [e.step for e in tiny_runs.of(events, StepFinished)] == [4, 5, 6]
    (notice,) = [e for e in tiny_runs.of(events, Noticed) if e.code == "checkpoint.damaged"]
    assert "step-4 is damaged" in notice.message
    assert isinstance(events[-1], RunFinished)
    history = [e.step for e in RunFolder(run).metrics() if isinstance(e, StepFinished)]
    assert history == [1, 2, 3, 4, 5, 6]


def test_with_every_checkpoint_damaged_the_resume_is_refused_and_says_which(make_config: MakeConfig) -> None:
    run = stopped_at(make_config, 2)
    for path in (run / "checkpoints").glob("step-*"):
        flip(path / "adapter.safetensors")
    with pytest.raises(EngineError, match=r"no checkpoint to go on from; damaged: step-2, step-1") as caught:
        tiny_runs.resume(run)
    assert caught.value.code == "run.no_checkpoint"


def test_a_damaged_best_checkpoint_does_not_cost_the_result(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = iter(range(1, 100))
    monkeypatch.setattr(recipe, "score", lambda *_: HeldOutScore(float(next(worse)), 10, 0.1))
    config = make_config(training__max_steps=6)
    seen = []
    for event in recipe.train(TrainJob(config_io.to_dict(config)), Control()):
        seen.append(event)
        if isinstance(event, CheckpointSaved) and event.reason == "finish":
            flip(Path(event.path).with_name("step-2") / "adapter.safetensors")
    assert isinstance(seen[-1], RunFinished)
    (notice,) = [e for e in tiny_runs.of(seen, Noticed) if e.code == "checkpoint.damaged"]
    assert "step-2" in notice.message
    record = RunFolder(tiny_runs.run_dir(seen)).record()
    assert (record["best_step"], record["loss_after"]) == (6, 4.0)


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_in_safetensors(*_: Any, **__: Any) -> Any:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def after(count: int, then: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """`original` for the first `count` calls, `then` from there on."""
    calls = iter(range(10**9))
    return lambda *args, **kwargs: (original if next(calls) < count else then)(*args, **kwargs)


WRITES: dict[str, tuple[Any, str, int, Callable[..., Any]]] = {
    "tensors of a checkpoint": (checkpoint, "save_file", 3, no_space_in_safetensors),
    "files of a checkpoint": (checkpoint, "save_file", 4, no_space),
    "position of a checkpoint": (checkpoint, "_write_state", 2, no_space),
    "fsync of a checkpoint": (sealed, "sync_file", 6, no_space),
    "metrics": (RunFolder, "append", 8, no_space),
    "record": (RunFolder, "write_record", 12, no_space),
}


@pytest.mark.parametrize(("where", "name", "count", "then"), WRITES.values(), ids=WRITES)
def test_a_full_disk_is_one_sentence_and_the_run_stays_resumable(
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    count: int,
    then: Callable[..., Any],
) -> None:
    config = make_config(training__max_steps=6, checkpoint__every_steps=1, training__eval_every_steps=100)
    with monkeypatch.context() as patch:
        patch.setattr(where, name, after(count, then, getattr(where, name)))
        events = engine_events(config)
    end = events[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "disk.write"
    assert "No space left on device" in end.message
    assert "make room" in end.hint
    assert not end.log_tail
    assert sum(isinstance(e, TERMINAL) for e in events) == 1
    summary = only_run(config)
    assert not list(summary.path.glob("checkpoints/.step-*"))
    pretend_the_process_died(summary.path)
    summary = only_run(config)
    assert summary.state not in LIVE_STATES
    assert summary.is_resumable
    resumed = tiny_runs.resume(summary.path)
    assert isinstance(resumed[-1], RunFinished)
    assert [e.step for e in RunFolder(summary.path).metrics() if isinstance(e, StepFinished)] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


def pretend_the_process_died(run: Path) -> None:
    """A full disk keeps the record from being written; here the process that claimed it is this one, and alive."""
    folder = RunFolder(run)
    if folder.record()["state"] in LIVE_STATES:
        folder.update(pid=2**22 - 1, pid_started=1.0)


def test_too_little_room_is_said_before_anything_is_loaded(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10, used=9, free=1)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    events = engine_events(make_config())
    end = events[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "disk.full"
    assert end.is_input_error
    assert "0 MiB left" in end.message
    assert not any("loading" in str(e) for e in events)


def test_an_unexpected_error_is_a_crash_with_its_traceback_kept(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "dry_step", lambda *_: 1 / 0)
    config = make_config()
    end = engine_events(config)[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "engine.bug"
    assert "ZeroDivisionError" in end.log_tail
    assert only_run(config).state == "crashed"


def test_a_disk_that_is_full_or_read_only_at_resume_is_a_sentence(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_at(make_config, 1)
    for number in (errno.ENOSPC, errno.EROFS, errno.EACCES):

        def refused(*_: Any, number: int = number) -> None:
            raise OSError(number, os.strerror(number), str(run / "run.json"))

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "write_record", refused)
            end = list(InlineEngine().run(ResumeJob(str(run))))[-1]
        assert isinstance(end, RunFailed)
        assert (end.code, end.log_tail) == ("disk.write", "")
    assert isinstance(tiny_runs.resume(run)[-1], RunFinished)


def test_a_run_that_cannot_even_begin_leaves_its_name_free(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(output__name="mine")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_record", no_space)
        with pytest.raises(EngineError, match="No space left on device"):
            RunFolder.create(config)
    assert RunFolder.create(config).run_id == "mine"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="SIGHUP is POSIX")
def test_a_terminal_that_goes_away_loses_nothing(make_config: MakeConfig) -> None:
    config = make_config(**{**LONG, "checkpoint__every_steps": 1000})
    engine, seen = ProcessEngine(), []
    for event in engine.run(TrainJob(config_io.to_dict(config))):
        seen.append(event)
        if isinstance(event, StepFinished) and event.step == 5:
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGHUP)
    assert isinstance(seen[-1], RunStopped)
    newest = checkpoint.newest(RunFolder(only_run(config).path))
    assert newest is not None
    assert checkpoint.step_of(newest) == max(e.step for e in tiny_runs.of(seen, StepFinished))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX timers")
def test_an_orphan_that_loops_for_ever_ends(tmp_path: Path) -> None:
    """As inside a chat template that never returns."""
    import subprocess
    import sys

    from qlora_engine import child

    script = (
        "from qlora_engine import jobs, worker\n"
        "def loop(job, control):\n    while True: pass\n    yield\n"
        "jobs.handler_of = lambda job: loop\nworker.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        text=True, env={**child.environment(), "QLORA_ORPHAN_SECONDS": "1"},
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write('{"job": "PrepareModelJob", "name": "x"}\n')
    process.stdin.close()
    assert process.wait(60) != 0
