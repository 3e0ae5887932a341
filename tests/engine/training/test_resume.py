"""N steps straight equal N/2, a stop, a resume and N/2: bit for bit, in weights, optimizer and metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import config_io
from qlora_engine.control import STOP_DISCARD, Control
from qlora_engine.errors import EngineError
from qlora_engine.events import (
    CheckpointSaved,
    Continued,
    EvaluationFinished,
    Event,
    OptimizerBuilt,
    Paused,
    RunFinished,
    RunStopped,
    SampleAnswered,
    StepFinished,
)
from qlora_engine.jobs import TrainJob
from qlora_engine.runs import stored
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.summary import list_runs
from qlora_engine.training import loss, recipe
from qlora_engine.training.steps import HeldOutScore
from tests.engine.training.conftest import MakeConfig
from tests.engine.training.halves import STEPS, When, after_step, half, stop, train_until
from tests.support import tiny_runs


def history(run: Path) -> list[tuple[Any, ...]]:
    """What a run measured, without times, each once."""
    found: dict[tuple[Any, ...], None] = {}
    for event in RunFolder(run).metrics():
        if isinstance(event, StepFinished):
            found[
                (
                    event.step,
                    event.loss,
                    event.learning_rate,
                    event.grad_norm,
                    event.tokens,
                    event.trained_tokens,
                )
            ] = None
        elif isinstance(event, EvaluationFinished):
            found[(event.step, "held-out", event.loss, event.trained_tokens, event.is_best)] = None
        elif isinstance(event, SampleAnswered):
            found[(event.step, event.prompt, event.answer)] = None
    return list(found)


def assert_same_run(one: Path, other: Path) -> None:
    """Adapter, optimizer state, random generators and everything measured are the same, byte by byte."""
    assert history(one) == history(other)
    names = [
        "adapter/adapter_model.safetensors",
        *(f"checkpoints/step-{STEPS}/{n}.safetensors" for n in ("adapter", "optimizer", "rng")),
    ]
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    kept = ("loss_before", "loss_after", "best_step", "best_loss", "tokens_seen", "samples", "last_step")
    one_record, other_record = RunFolder(one).record(), RunFolder(other).record()
    assert {k: one_record[k] for k in kept} == {k: other_record[k] for k in kept}


def finish(run: Path) -> None:
    events = tiny_runs.resume(run)
    assert isinstance(events[-1], RunFinished)


VARIANTS: dict[str, dict[str, Any]] = {
    "torch AdamW": {},
    "torch AdamW, dropout": {"lora__dropout": 0.3},
    "torch AdamW, packing": {"data__packing": True, "data__seq_len": 96},
    "8-bit AdamW": {"training__optimizer": "adamw_8bit", "lora__rank": 64},
    "8-bit AdamW, dropout, packing": {
        "training__optimizer": "adamw_8bit", "lora__rank": 64, "lora__dropout": 0.3, "data__packing": True,
        "data__seq_len": 96,
    },
    "paged 8-bit AdamW": {"training__optimizer": "paged_adamw_8bit", "lora__rank": 64},
    "paged 32-bit AdamW": {"training__optimizer": "paged_adamw_32bit"},
    "8-bit Lion": {"training__optimizer": "lion_8bit", "lora__rank": 64, "training__learning_rate": 1e-3},
    "DoRA, no checkpointing": {"lora__dora": True, "training__gradient_checkpointing": False},
    "LoftQ": {"lora__init": "loftq"},
    "bf16 adapters": {"lora__dtype": "bf16"},
}  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_stop_and_a_resume_change_nothing(make_config: MakeConfig, changes: dict[str, Any]) -> None:
    straight = tiny_runs.finished_run(half(make_config, "straight", **changes))
    events = train_until(half(make_config, "stopped", **changes), after_step(3), stop)
    assert isinstance(events[-1], RunStopped)
    assert events[-1].is_resumable
    run = tiny_runs.run_dir(events)
    assert max(e.step for e in tiny_runs.of(events, StepFinished)) == 3
    finish(run)
    assert_same_run(straight, run)


def test_the_resumed_eight_bit_optimizer_is_the_same_kind(make_config: MakeConfig) -> None:
    """Class and bytes, eight-bit ones among them, are told again and are the same as before the stop."""
    changes = {"training__optimizer": "adamw_8bit", "lora__rank": 64}
    events = train_until(half(make_config, "stopped", **changes), after_step(3), stop)
    (before,) = tiny_runs.of(events, OptimizerBuilt)
    (after,) = tiny_runs.of(tiny_runs.resume(tiny_runs.run_dir(events)), OptimizerBuilt)
    assert after == before
    assert before.eight_bit_bytes > 0


def test_dropout_changes_the_run(make_config: MakeConfig) -> None:
    """Else the variants with dropout would prove nothing about the random generators."""
    plain = tiny_runs.losses(tiny_runs.train(half(make_config, "plain")))
    dropped = tiny_runs.losses(tiny_runs.train(half(make_config, "dropped", lora__dropout=0.3)))
    assert plain != dropped


@pytest.mark.parametrize(
    "when",
    [
        lambda event: isinstance(event, SampleAnswered) and event.step == 0,
        lambda event: isinstance(event, EvaluationFinished) and event.step == 0,
        after_step(1),
        after_step(2),
        lambda event: isinstance(event, SampleAnswered) and event.step == 2,
        lambda event: isinstance(event, EvaluationFinished) and event.step == 4,
        after_step(STEPS),
        lambda event: isinstance(event, SampleAnswered) and event.step == STEPS,
    ],
    ids=[
        "before the first evaluation", "after the first evaluation", "after step 1", "where an evaluation is due",
        "within an evaluation", "after an evaluation", "after the last step", "within the last evaluation",
    ],
)  # fmt: skip
def test_a_stop_at_any_moment_changes_nothing(make_config: MakeConfig, when: When) -> None:
    straight = tiny_runs.finished_run(half(make_config, "straight", lora__dropout=0.2))
    events = train_until(half(make_config, "stopped", lora__dropout=0.2), when, stop)
    assert isinstance(events[-1], RunStopped)
    run = tiny_runs.run_dir(events)
    finish(run)
    assert_same_run(straight, run)


def test_a_stop_between_micro_batches_abandons_the_step(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = tiny_runs.finished_run(half(make_config, "straight", lora__dropout=0.2))
    control, original = Control(), loss.summed_loss

    def stopping(model: Any, batch: Any, **kwargs: Any) -> Any:
        if model.training and stepped:
            control.request_stop()
        return original(model, batch, **kwargs)

    stepped: list[Event] = []
    with monkeypatch.context() as patch:
        patch.setattr(loss, "summed_loss", stopping)
        events = []
        config = half(make_config, "stopped", lora__dropout=0.2)
        for event in recipe.train(TrainJob(config_io.to_dict(config)), control):
            events.append(event)
            stepped += [event] if isinstance(event, StepFinished) and event.step == 3 else []
    assert isinstance(events[-1], RunStopped)
    assert len(tiny_runs.of(events, StepFinished)) == 3
    run = tiny_runs.run_dir(events)
    finish(run)
    assert_same_run(straight, run)


def test_many_stops_change_nothing(make_config: MakeConfig) -> None:
    straight = tiny_runs.finished_run(half(make_config, "straight", lora__dropout=0.2))
    run = tiny_runs.run_dir(train_until(half(make_config, "stopped", lora__dropout=0.2), after_step(1), stop))
    for step in (2, 4, 5):
        control = Control()
        for event in recipe.resume(recipe.ResumeJob(str(run)), control):
            if isinstance(event, StepFinished) and event.step == step:
                control.request_stop()
        assert RunFolder(run).state() == "stopped"
    finish(run)
    assert_same_run(straight, run)


def test_a_crash_goes_on_from_the_last_checkpoint(make_config: MakeConfig) -> None:
    """Steps after the checkpoint are lost and done again; what was measured in them is not kept twice."""
    changes = {"lora__dropout": 0.2, "checkpoint__every_steps": 3}
    straight = tiny_runs.finished_run(half(make_config, "straight", **changes))
    events = recipe.train(TrainJob(config_io.to_dict(half(make_config, "crashed", **changes))), Control())
    for event in events:
        if isinstance(event, StepFinished) and event.step == 5:
            events.close()  # type: ignore[attr-defined]
            break
    (summary,) = [s for s in list_runs(straight.parent) if s.run_id == "crashed"]
    assert (summary.state, summary.is_resumable) == ("crashed", True)
    resumed = tiny_runs.resume(summary.path)
    assert [e.step for e in tiny_runs.of(resumed, StepFinished)] == [5, 6]  # the best one of step 4 is newer
    assert_same_run(straight, summary.path)


def test_pause_saves_and_continue_goes_on(make_config: MakeConfig) -> None:
    straight = tiny_runs.finished_run(half(make_config, "straight", lora__dropout=0.2))
    config = half(make_config, "paused", lora__dropout=0.2)
    control, seen, states = Control(), [], []
    for event in recipe.train(TrainJob(config_io.to_dict(config)), control):
        seen.append(event)
        if isinstance(event, StepFinished) and event.step == 3:
            control.request_pause()
        if isinstance(event, Paused):
            states = [s.state for s in list_runs(straight.parent) if s.run_id == "paused"]
            control.request_continue()
    assert states == ["paused"]
    assert [type(e) for e in seen if isinstance(e, Paused | Continued)] == [Paused, Continued]
    assert [e.step for e in tiny_runs.of(seen, CheckpointSaved) if e.reason == "pause"] == [3]
    assert isinstance(seen[-1], RunFinished)
    assert_same_run(straight, tiny_runs.run_dir(seen))


def test_a_stop_while_paused_is_heard(make_config: MakeConfig) -> None:
    control, seen = Control(), []
    for event in recipe.train(TrainJob(config_io.to_dict(half(make_config, "paused"))), control):
        seen.append(event)
        if isinstance(event, StepFinished) and event.step == 3:
            control.request_pause()
        if isinstance(event, Paused):
            control.request_stop()
    assert isinstance(seen[-1], RunStopped)
    assert seen[-1].is_resumable
    assert not tiny_runs.of(seen, Continued)


def test_discard_saves_nothing(make_config: MakeConfig) -> None:
    config = half(make_config, "discarded", training__keep_best=False)
    events = train_until(config, after_step(3), lambda control: control.request_stop(STOP_DISCARD))
    assert isinstance(events[-1], RunStopped)
    assert not events[-1].is_resumable
    assert not tiny_runs.of(events, CheckpointSaved)
    with pytest.raises(EngineError, match="no checkpoint to go on from"):
        tiny_runs.resume(tiny_runs.run_dir(events))


def test_a_finished_run_is_not_resumed(make_config: MakeConfig) -> None:
    run = tiny_runs.finished_run(half(make_config, "done"))
    with pytest.raises(EngineError, match="is finished"):
        tiny_runs.resume(run)


def test_save_on_request_is_a_checkpoint(make_config: MakeConfig) -> None:
    events = train_until(half(make_config, "saved"), after_step(3), lambda control: control.request("save"))
    assert [e.step for e in tiny_runs.of(events, CheckpointSaved) if e.reason == "requested"] == [3]


def test_samples_before_and_after_are_kept_with_the_run(make_config: MakeConfig) -> None:
    run = tiny_runs.finished_run(half(make_config, "samples", lora__rank=16, training__max_steps=20))
    record = RunFolder(run).record()
    (sample,) = record["samples"]
    told = {e.step: e.answer for e in RunFolder(run).metrics() if isinstance(e, SampleAnswered)}
    assert sample == {"prompt": "Say water", "before": told[0], "after": told[record["best_step"]]}
    assert sample["before"] != sample["after"]


def test_a_checkpoint_holds_nothing_that_could_run(make_config: MakeConfig) -> None:
    run = tiny_runs.finished_run(half(make_config, "files"))
    found = {p.suffix for p in (run / "checkpoints").rglob("*") if p.is_file()}
    assert found == {".safetensors", ".json", ".toml"}
    assert json.loads((run / "checkpoints" / f"step-{STEPS}" / "state.json").read_text())["train_state"]


def test_early_stopping_is_remembered_after_the_final_checkpoint(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between that checkpoint and the adapter, a run that had stopped early trains no further."""
    worse = iter(range(1, 100))
    monkeypatch.setattr(recipe, "score", lambda *_: HeldOutScore(float(next(worse)), 10, 0.1))
    config = half(
        make_config, "early", training__max_steps=20, training__eval_every_steps=1, training__early_stopping=2
    )
    events = recipe.train(TrainJob(config_io.to_dict(config)), Control())
    for event in events:
        if isinstance(event, CheckpointSaved) and event.reason == "finish":
            events.close()  # type: ignore[attr-defined]
            break
    run = Path(event.path).parents[1]  # type: ignore[attr-defined]
    assert RunFolder(run).state() == "crashed"
    resumed = tiny_runs.resume(run)
    assert not tiny_runs.of(resumed, StepFinished)
    assert isinstance(resumed[-1], RunFinished)


def test_a_damaged_adapter_of_a_finished_run_is_made_again(make_config: MakeConfig) -> None:
    run = tiny_runs.finished_run(half(make_config, "done"))
    weights = run / "adapter" / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-8])
    assert isinstance(tiny_runs.resume(run)[-1], RunFinished)
    assert weights.read_bytes() == good
    assert stored.adapter_problem(run) == ""
