"""Memory that runs out, anywhere in a step: what is tried, and that nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_engine.events import (
    Noticed,
    RunFailed,
    RunFinished,
    StepFinished,
)
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import checkpoint, loss, optim, recipe
from tests.engine.training.conftest import MakeConfig
from tests.engine.training.faulty_runs import engine_events, only_run
from tests.support import tiny_runs


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
