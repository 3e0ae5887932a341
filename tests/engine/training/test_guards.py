"""Guards of a run that nothing else would miss: checkpoints by the clock and of good steps alone, an end that learned, files
for their owner alone, what evaluation keeps."""

from __future__ import annotations

import math
import os
import stat
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils import checkpoint as torch_checkpoint

from qlora_engine import config_io, jobs
from qlora_engine.client import InlineEngine, ProcessEngine
from qlora_engine.config import CheckpointSettings, TrainingConfig, validate, with_value
from qlora_engine.control import Control
from qlora_engine.events import CheckpointSaved, Event, RunFailed, RunFinished
from qlora_engine.training import loss, recomputing, steps
from qlora_engine.training.fast import install
from qlora_engine.training.pace import Pace
from tests.engine.training.conftest import MakeConfig
from tests.engine.training.test_fast_paths import ON, load, parts_of, rows
from tests.support import tiny_runs


def engine_events(config: TrainingConfig) -> list[Event]:
    return list(InlineEngine().run(jobs.TrainJob(config_io.to_dict(config))))


def bad_from(monkeypatch: pytest.MonkeyPatch, bad: range) -> None:
    """Training losses of these calls are no numbers."""
    original, calls = loss.summed_loss, iter(range(10**9))

    def broken(model: Any, batch: Any, **kwargs: Any) -> torch.Tensor:
        found = original(model, batch, **kwargs)
        return found * math.nan if torch.is_grad_enabled() and next(calls) in bad else found

    monkeypatch.setattr(loss, "summed_loss", broken)


def test_after_a_bad_step_no_checkpoint_is_due(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_from(monkeypatch, range(5, 6))  # the dry step, two steps of two, and half of the third
    config = make_config(training__max_steps=4, training__eval_every_steps=100, checkpoint__every_steps=1)
    events = engine_events(config)
    assert isinstance(events[-1], RunFinished)
    due = [e.step for e in tiny_runs.of(events, CheckpointSaved) if e.reason == "steps"]
    assert 2 in due
    assert 3 not in due


def test_a_run_of_which_no_step_was_applied_is_no_success(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_from(monkeypatch, range(1, 1000))
    end = engine_events(make_config(training__max_steps=2, training__eval_every_steps=100))[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "training.nothing_learned"
    assert "none of the 2 steps" in end.message


def test_a_checkpoint_is_due_by_the_clock_where_no_number_of_steps_is_set() -> None:
    now = SimpleNamespace(seconds=0.0)
    pace = Pace(CheckpointSettings(every_steps=None, every_minutes=10), lambda: now.seconds)
    now.seconds = 599
    assert pace.checkpoint_due(7) is None
    now.seconds = 600
    assert pace.checkpoint_due(8) == "time"
    pace.checkpointed()
    assert pace.checkpoint_due(9) is None


def test_there_is_no_run_without_checkpoints() -> None:
    assert CheckpointSettings().every_minutes > 0
    issues = validate(with_value(TrainingConfig(), "checkpoint.every_minutes", 0))
    assert [issue.path for issue in issues] == ["checkpoint.every_minutes"]


def test_blocks_that_recompute_in_the_old_way_still_pass_gradients(two_layers: Path) -> None:
    """A class that brings its own checkpointing may use torch's re-entrant one, which passes a gradient only where an
    input asks for one; the embeddings are frozen."""
    model = load(two_layers)
    base = model.get_base_model()
    recomputing.enable(base)
    for block in base.model.layers:
        block._gradient_checkpointing_func = partial(torch_checkpoint.checkpoint, use_reentrant=True)
    model(input_ids=torch.arange(4, 20)[None], use_cache=False).logits.sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert any("layers.0." in name for name in found)
    assert all(gradient is not None and bool(gradient.any()) for gradient in found.values())


def test_evaluation_keeps_numbers_alone(two_layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(two_layers)
    parts = parts_of(model, install.install(model, ON, rows(), device="cpu", spare_bytes=1 << 40))
    grads: list[bool] = []
    model.register_forward_pre_hook(lambda *_: grads.append(torch.is_grad_enabled()))
    model.get_base_model().model.register_forward_pre_hook(lambda *_: grads.append(torch.is_grad_enabled()))
    original, kept = loss.token_losses, []

    def spied(*arguments: Any, **more: Any) -> Any:
        kept.append(original(*arguments, **more))
        return kept[-1]

    monkeypatch.setattr(loss, "token_losses", spied)
    found = steps.score(parts, rows(), 2, Control())
    assert grads
    assert not any(grads)
    assert all(type(summed) is float and type(count) is int for summed, count in kept)
    assert found.loss == pytest.approx(sum(s for s, _ in kept) / sum(c for _, c in kept))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
def test_what_a_run_writes_is_its_owners_alone(make_config: MakeConfig) -> None:
    """Everything, the log of the engine's own process included, whatever the umask."""
    config = make_config(training__max_steps=2, checkpoint__every_steps=1)
    before = os.umask(0)
    try:
        events = list(ProcessEngine().run(jobs.TrainJob(config_io.to_dict(config))))
    finally:
        os.umask(before)
    assert isinstance(events[-1], RunFinished)
    folder = tiny_runs.run_dir(events)
    written = {path.relative_to(folder).as_posix(): path for path in (folder, *folder.rglob("*"))}
    assert {"log.txt", "metrics.jsonl", "job.toml", "run.json", "adapter/adapter_model.safetensors"} <= set(
        written
    )
    assert [name for name, path in written.items() if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
