"""Losses, gradients and adapters that are no numbers, explode or do not move."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from qlora_engine.errors import EngineError
from qlora_engine.events import (
    RunFailed,
    RunFinished,
    StepFinished,
)
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import loss, optim
from qlora_engine.training.steps import StepResult
from qlora_engine.training.watchdog import Watchdog
from tests.engine.training.conftest import MakeConfig
from tests.engine.training.faulty_runs import engine_events, only_run
from tests.support import tiny_runs


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
