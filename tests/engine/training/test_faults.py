"""Faults: killed engines, damaged checkpoints, full disks, numbers that are none, memory that runs out."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from qlora_engine import config_io
from qlora_engine.client import InlineEngine, ProcessEngine
from qlora_engine.config import TrainingConfig
from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.events import (
    TERMINAL,
    CheckpointSaved,
    Event,
    Noticed,
    RunFailed,
    RunFinished,
    RunStarted,
    RunStopped,
    StepFinished,
)
from qlora_engine.jobs import ResumeJob, TrainJob
from qlora_engine.runs import sealed
from qlora_engine.runs.record import LIVE_STATES, RunFolder, list_runs
from qlora_engine.training import checkpoint, loss, optim, recipe
from qlora_engine.training.steps import HeldOutScore, StepResult
from qlora_engine.training.watchdog import Watchdog
from tests.engine.training.conftest import MakeConfig
from tests.support import tiny_runs

LONG = {"training__max_steps": 2000, "training__eval_every_steps": 5000, "checkpoint__every_steps": 3}


def engine_events(config: TrainingConfig) -> list[Event]:
    return list(InlineEngine().run(TrainJob(config_io.to_dict(config))))


def only_run(config: TrainingConfig) -> Any:
    (summary,) = list_runs(Path(config.output.runs_dir or ""))
    return summary


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


# ---- killed


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


# ---- damaged checkpoints


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


# ---- full disk


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


# ---- numbers


def broken_loss(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor], calls: int
) -> None:
    """Training losses after the first `calls` are changed; evaluations are not."""
    original, done = loss.summed_loss, iter(range(10**9))

    def broken(model: Any, batch: Any, **kwargs: Any) -> torch.Tensor:
        found = original(model, batch, **kwargs)
        return change(found) if torch.is_grad_enabled() and next(done) >= calls else found

    monkeypatch.setattr(loss, "summed_loss", broken)


def test_losses_that_are_no_numbers_stop_the_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_loss(monkeypatch, lambda value: value * math.nan, calls=7)  # the dry step and three steps of two
    config = make_config(training__max_steps=20, training__eval_every_steps=100, checkpoint__every_steps=1)
    events = engine_events(config)
    end = events[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "training.not_finite"
    assert "was not a number for 3 steps" in end.message
    assert "learning_rate" in end.hint
    assert len(tiny_runs.of(events, StepFinished)) == 6
    summary = only_run(config)
    assert summary.state == "failed"
    assert RunFolder(summary.path).record()["error"]["code"] == "training.not_finite"


def test_a_loss_that_is_no_number_leaves_the_weights_alone(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bad steps are no reason to stop, and no reason to lose what was learned."""
    original, done = loss.summed_loss, iter(range(10**9))

    def broken(model: Any, batch: Any, **kwargs: Any) -> torch.Tensor:
        found = original(model, batch, **kwargs)
        return found * math.nan if torch.is_grad_enabled() and next(done) in (5, 8) else found

    monkeypatch.setattr(loss, "summed_loss", broken)
    events = engine_events(make_config(training__max_steps=8, training__eval_every_steps=100))
    assert isinstance(events[-1], RunFinished)
    found = tiny_runs.losses(events)
    assert [math.isfinite(value) for value in found] == [True, True, False, False, True, True, True, True]
    assert all(value < found[0] + 0.5 for value in found if math.isfinite(value))


def test_the_first_step_with_a_bad_loss_is_not_called_a_lost_gradient(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_loss(monkeypatch, lambda value: value * math.nan, calls=1)
    end = engine_events(make_config(training__max_steps=8))[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "training.not_finite"


def test_gradients_that_are_all_zero_stop_the_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_loss(monkeypatch, lambda value: value * 0.0, calls=7)
    end = engine_events(make_config(training__max_steps=20, training__eval_every_steps=100))[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "training.no_gradient"
    assert "exactly 0 for 3 steps" in end.message


def test_adapters_that_do_not_move_stop_the_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = optim.step

    def in_vain(optimizer: torch.optim.Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        original(optimizer)
        for parameter, values in zip(parameters, before, strict=True):
            parameter.data.copy_(values)

    monkeypatch.setattr(optim, "step", in_vain)
    end = engine_events(make_config(training__max_steps=8))[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "training.no_gradient"
    assert "changed no adapter" in end.message


def step_result(**changes: Any) -> StepResult:
    values = {
        "loss": 1.0, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 8, "trained_tokens": 8, "seconds": 1.0,
    }  # fmt: skip
    return StepResult(**{**values, **changes})


def test_fp16_may_search_its_loss_scale() -> None:
    """The first scale of 65,536 overflows for some steps on purpose; that is no reason to stop."""
    watchdog = Watchdog()
    for power in range(16, 0, -1):
        watchdog.look(step_result(grad_norm=math.inf, is_applied=False, loss_scale=2.0**power))
    watchdog.look(step_result(grad_norm=math.inf, is_applied=False, loss_scale=1.0))
    watchdog.look(step_result(grad_norm=math.inf, is_applied=False, loss_scale=0.5))
    with pytest.raises(EngineError, match="not a number for 3 steps"):
        watchdog.look(step_result(grad_norm=math.inf, is_applied=False, loss_scale=0.25))


def test_good_steps_between_bad_ones_keep_a_run_going() -> None:
    watchdog = Watchdog()
    for _ in range(10):
        watchdog.look(step_result(grad_norm=0.0))
        watchdog.look(step_result(grad_norm=0.0))
        watchdog.look(step_result())


# ---- memory


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that has room for two rows at once; the rows of each attempt."""
    tried: list[int] = []
    original = loss.summed_loss

    def bounded(model: Any, batch: Any, **kwargs: Any) -> torch.Tensor:
        rows = len(batch.lengths) or batch.input_ids.shape[0]
        if torch.is_grad_enabled():
            tried.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(model, batch, **kwargs)

    monkeypatch.setattr(loss, "summed_loss", bounded)
    return tried


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    make_config: MakeConfig, small_memory: list[int]
) -> None:
    settings = {"training__effective_batch": 8, "training__max_steps": 5, "lora__dropout": 0.0}
    wanted = tiny_runs.train(make_config(training__micro_batch=2, **settings))
    small_memory.clear()
    events = tiny_runs.train(make_config(training__micro_batch=8, **settings))
    notices = [e.message for e in tiny_runs.of(events, Noticed) if e.code == "memory.micro_batch"]
    assert notices == [
        "Out of memory: weights are dequantized in every pass from here on; going on",
        "Out of memory: micro-batch 8 -> 4, the effective batch stays the same; going on",
        "Out of memory: micro-batch 4 -> 2, the effective batch stays the same; going on",
    ]
    assert small_memory[:4] == [8, 8, 4, 2]  # in the dry step, before the first real one
    assert max(small_memory[3:]) == 2
    assert tiny_runs.losses(events) == tiny_runs.losses(wanted)
    assert [e.tokens for e in tiny_runs.of(events, StepFinished)] == [
        e.tokens for e in tiny_runs.of(wanted, StepFinished)
    ]
    state = json.loads((tiny_runs.run_dir(events) / "checkpoints" / "step-5" / "state.json").read_text())
    assert state["train_state"]["micro_batch"] == 2


def test_out_of_memory_in_the_middle_of_a_step_leaves_no_trace(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout the random numbers must be drawn again, and half a step's gradients must be gone."""
    settings = {"training__max_steps": 4, "lora__dropout": 0.3, "training__eval_every_steps": 100}
    original, calls = loss.summed_loss, iter(range(10**9))

    def failing(model: Any, batch: Any, **kwargs: Any) -> torch.Tensor:
        if torch.is_grad_enabled() and next(calls) == 4:  # the second half of the second step
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(model, batch, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loss, "summed_loss", failing)
        failed = tiny_runs.train(make_config(**settings))
    notice = [e for e in tiny_runs.of(failed, Noticed) if e.code == "memory.micro_batch"]
    assert len(notice) == 1
    wanted = tiny_runs.train(make_config(**settings))
    ours, theirs = tiny_runs.losses(failed), tiny_runs.losses(wanted)
    assert ours[0] == theirs[0]
    assert ours[1] == pytest.approx(theirs[1], rel=0.05)  # other micro-batches draw other dropout masks


def test_out_of_memory_in_the_first_optimizer_step_takes_the_step_back(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"training__max_steps": 4, "training__warmup_ratio": 0.0, "training__eval_every_steps": 100}
    original, calls = optim.step, iter(range(10**9))

    def failing(optimizer: torch.optim.Optimizer) -> None:
        original(optimizer)
        if next(calls) == 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(optim, "step", failing)
        failed = tiny_runs.train(make_config(**settings))
    wanted = tiny_runs.train(make_config(training__effective_batch=4, **settings))
    assert [e.code for e in tiny_runs.of(failed, Noticed)].count("memory.micro_batch") == 1
    assert tiny_runs.losses(failed) == pytest.approx(tiny_runs.losses(wanted), rel=1e-5)


def test_memory_too_small_for_one_row_is_one_sentence(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(recipe, "dry_step", never)
    config = make_config()
    end = engine_events(config)[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "memory.gpu"
    assert "micro-batch 1" in end.message
    assert "data.seq_len" in end.hint
    assert only_run(config).state == "failed"


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


# ---- memory of the computer

CPU_WORDS = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."


def out_of_memory_once(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, at: int, error: Exception
) -> None:
    """The call number `at` of a function fails before it does anything."""
    original, calls = getattr(place, name), iter(range(10**9))

    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, failing)


KEPT, HALVED = "weights are dequantized in every pass", "micro-batch 2 -> 1"
PLACES: dict[str, tuple[Any, str, int, str]] = {
    "forward": (loss, "summed_loss", 3, KEPT),
    "backward": (torch.Tensor, "backward", 3, HALVED),
    "optimizer": (optim, "step", 0, KEPT),
    "evaluation": (loss, "token_losses", 1, HALVED),
    "checkpoint": (optim, "export_state", 0, ""),
}
ERRORS = {
    "computer": RuntimeError(CPU_WORDS),
    "Python": MemoryError(),
    "GPU": torch.OutOfMemoryError("CUDA out of memory."),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize(("place", "name", "at", "words"), PLACES.values(), ids=PLACES)
def test_memory_that_runs_out_anywhere_is_gone_on_from(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, at: int, words: str, error: Exception
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        out_of_memory_once(patch, place, name, at, error)
        kept = 0.0 if words == HALVED else 4.0
        settings = {
            "training__max_steps": 2,
            "training__warmup_ratio": 0.0,
            "training__kept_weights_gib": kept,
        }
        events = engine_events(make_config(**settings))
    assert isinstance(events[-1], RunFinished), events[-1]
    assert len(tiny_runs.losses(events)) == 2
    said = [e.message for e in tiny_runs.of(events, Noticed) if e.code == "memory.micro_batch"]
    assert [words in text for text in said] == ([True] if words else [])


def test_at_the_end_of_the_ladder_everything_was_tried(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise RuntimeError(CPU_WORDS)

    monkeypatch.setattr(recipe, "dry_step", never)
    events = engine_events(make_config(training__gradient_checkpointing=False, training__loss="full"))
    said = [e.message for e in tiny_runs.of(events, Noticed) if e.code == "memory.micro_batch"]
    assert [text.split(": ", 1)[1].split(",")[0] for text in said] == [
        "weights are dequantized in every pass from here on; going on", "micro-batch 2 -> 1", "activations are recomputed from here on; going on",
        "the loss is computed in chunks from here on; going on",
    ]  # fmt: skip
    end = events[-1]
    assert isinstance(end, RunFailed)
    assert (end.code, end.log_tail) == ("memory.host", "")


def test_a_later_optimizer_step_that_fails_is_not_tried_again(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows which weights it has changed."""
    config = make_config(training__max_steps=4, checkpoint__every_steps=1)
    with monkeypatch.context() as patch:
        out_of_memory_once(patch, optim, "step", 2, MemoryError())
        end = engine_events(config)[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "memory.optimizer"
    assert checkpoint.step_of(checkpoint.newest(RunFolder(only_run(config).path)) or Path()) == 2


# ---- divergence


def test_a_gradient_that_explodes_stops_the_run_before_a_checkpoint_holds_it() -> None:
    watchdog = Watchdog()
    for _ in range(10):
        watchdog.look(step_result(grad_norm=0.5))
    watchdog.look(step_result(grad_norm=600.0))
    assert not watchdog.is_content
    watchdog.look(step_result(grad_norm=700.0))
    with pytest.raises(EngineError, match=r"800 long for 3 steps, and 0\.5 before") as caught:
        watchdog.look(step_result(grad_norm=800.0))
    assert "learning_rate" in caught.value.hint


def test_an_adapter_that_is_no_number_is_never_written(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = optim.step, iter(range(10**9))

    def spoiling(optimizer: torch.optim.Optimizer) -> None:
        original(optimizer)
        if next(calls) == 2:
            optimizer.param_groups[0]["params"][0].data.fill_(math.nan)

    monkeypatch.setattr(optim, "step", spoiling)
    config = make_config(training__max_steps=3, checkpoint__every_steps=1, training__eval_every_steps=9)
    end = engine_events(config)[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "training.not_finite"
    folder = RunFolder(only_run(config).path)
    assert not folder.adapter_dir.exists()
    assert [path.name for path in folder.checkpoints()] == ["step-1", "step-2"]


# ---- a folder that cannot be written


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
