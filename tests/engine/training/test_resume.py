"""N steps straight equal N/2, a stop, a resume and N/2: bit for bit, in weights, optimizer and metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig, all_knobs, get_value, with_value
from qlora_engine.control import STOP_DISCARD, Control
from qlora_engine.errors import EngineError
from qlora_engine.events import (
    CheckpointSaved,
    Continued,
    EvaluationFinished,
    Event,
    Noticed,
    OptimizerBuilt,
    Paused,
    RunFinished,
    RunStopped,
    SampleAnswered,
    StepFinished,
)
from qlora_engine.jobs import TrainJob
from qlora_engine.runs import stored
from qlora_engine.runs.record import RunFolder, list_runs
from qlora_engine.training import identity, loss, recipe
from qlora_engine.training.steps import HeldOutScore
from tests.engine.training.conftest import MakeConfig
from tests.support import tiny_runs

STEPS = 6
When = Callable[[Event], bool]


def half(make_config: MakeConfig, name: str, **changes: Any) -> TrainingConfig:
    values = {
        "training__max_steps": STEPS,
        "training__sample_prompts": ("Say water",),
        "training__sample_tokens": 6,
        "training__end_rows": 1,
        "training__end_tokens": 16,
        "training__early_stopping": None,
    }
    return make_config(output__name=name, **{**values, **changes})


def train_until(config: TrainingConfig, when: When, act: Callable[[Control], None]) -> list[Event]:
    """A run that does `act` when the first event comes for which `when` holds."""
    control, seen, has_acted = Control(), [], False
    for event in recipe.train(TrainJob(config_io.to_dict(config)), control):
        seen.append(event)
        if not has_acted and when(event):
            has_acted = True
            act(control)
    assert has_acted
    return seen


def after_step(number: int) -> When:
    return lambda event: isinstance(event, StepFinished) and event.step == number


def stop(control: Control) -> None:
    control.request_stop()


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


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, rows: Path) -> Path:
    """A run stopped at step 3; each test takes a copy."""
    place = tmp_path_factory.mktemp("half")
    config = tiny_runs.tiny_config(
        model_dir, rows, place, training__max_steps=STEPS, training__early_stopping=None, output__name="half"
    )
    return tiny_runs.run_dir(train_until(config, after_step(3), stop))


@pytest.fixture
def run_copy(half_done: Path, tmp_path: Path) -> Path:
    shutil.copytree(half_done, tmp_path / "copy")
    return tmp_path / "copy"


def edit(run: Path, **changes: Any) -> None:
    """As a person does who opens `job.toml`."""
    config, _ = RunFolder(run).asked()
    for path, value in changes.items():
        config = with_value(config, path.replace("__", ".", 1), value)
    config_io.save(config, run / "job.toml")


REFUSED: dict[str, Any] = {
    "lora.alpha": 4.0, "lora.dropout": 0.5, "training.learning_rate": 0.002, "training.schedule": "linear",
    "training.seed": 7, "training.effective_batch": 8, "training.weight_decay": 0.1, "data.max_rows": 20,
    "data.train_on": "everything", "quantization.double_quant": False, "training.optimizer": "adamw_8bit",
}  # fmt: skip


@pytest.mark.parametrize(("path", "value"), REFUSED.items(), ids=REFUSED)
def test_a_setting_that_makes_it_another_run_is_refused_by_name(
    run_copy: Path, path: str, value: Any
) -> None:
    edit(run_copy, **{path.replace(".", "__", 1): value})
    with pytest.raises(EngineError, match="was made with something else") as caught:
        tiny_runs.resume(run_copy)
    assert caught.value.code == "resume.differs"
    assert f"{path} was " in caught.value.message
    assert f"--accept {path}" in caught.value.hint
    assert caught.value.accept == (path,)  # what a window that asks has to send
    assert RunFolder(run_copy).state() == "stopped"


@pytest.mark.parametrize(
    "path", ["lora.alpha", "training.learning_rate", "training.optimizer", "training.weight_decay"]
)
def test_what_was_accepted_is_said_with_its_consequence_and_takes_effect(run_copy: Path, path: str) -> None:
    straight = tiny_runs.losses(RunFolder(run_copy).metrics())
    other = run_copy.with_name("unchanged")
    shutil.copytree(run_copy, other)
    edit(run_copy, **{path.replace(".", "__", 1): REFUSED[path]})
    events = list(recipe.resume(recipe.ResumeJob(str(run_copy), (path,)), Control()))
    (notice,) = [e for e in tiny_runs.of(events, Noticed) if e.code == "run.changed"]
    assert notice.level == "warning"
    assert notice.message.startswith(f"{path[0].upper()}{path[1:]} was ")
    assert isinstance(events[-1], RunFinished)
    unchanged = tiny_runs.resume(other)
    assert tiny_runs.losses(events) != tiny_runs.losses(unchanged)
    assert tiny_runs.losses(RunFolder(run_copy).metrics())[: len(straight)] == straight
    assert get_value(RunFolder(run_copy).job(), path) == REFUSED[path]


def test_an_accepted_rate_is_applied_from_the_next_step(run_copy: Path) -> None:
    edit(run_copy, training__learning_rate=0.002)
    events = list(recipe.resume(recipe.ResumeJob(str(run_copy), ("all",)), Control()))
    rates = [e.learning_rate for e in tiny_runs.of(events, StepFinished)]
    assert max(rates) < 0.002
    wanted = [e.learning_rate for e in RunFolder(run_copy).metrics() if isinstance(e, StepFinished)]
    assert wanted[1] == 0.01  # before, with a warm-up of one step


def test_the_run_may_be_made_longer_and_what_is_safe_may_change(run_copy: Path) -> None:
    edit(run_copy, training__max_steps=8, checkpoint__every_steps=1, training__early_stopping=9)
    events = tiny_runs.resume(run_copy)
    assert [e.step for e in tiny_runs.of(events, StepFinished)] == [4, 5, 6, 7, 8]
    said = [(e.level, e.message) for e in tiny_runs.of(events, Noticed) if e.code == "run.changed"]
    assert said[0] == (
        "info", "Training.max_steps was 6 and is 8: the learning rate of the steps left follows the new length"
    )  # fmt: skip
    assert [text.split(" was")[0] for _, text in said[1:]] == [
        "Training.early_stopping",
        "Checkpoint.every_steps",
    ]


def test_a_run_shortened_below_its_checkpoint_is_a_sentence(run_copy: Path) -> None:
    edit(run_copy, training__max_steps=2)
    with pytest.raises(EngineError, match="step 3, and the settings give 2"):
        tiny_runs.resume(run_copy)


@pytest.mark.parametrize(
    ("path", "value"), [("lora.rank", 8), ("lora.dora", True), ("lora.targets", ("q_proj",))]
)
def test_weights_of_another_shape_are_refused_whatever_is_accepted(
    run_copy: Path, path: str, value: Any
) -> None:
    edit(run_copy, **{path.replace(".", "__", 1): value})
    with pytest.raises(EngineError, match="its weights fit no other") as caught:
        list(recipe.resume(recipe.ResumeJob(str(run_copy), ("all",)), Control()))
    assert caught.value.code == "resume.shape"


def test_another_file_of_data_is_refused_and_a_moved_one_is_not(
    run_copy: Path, rows: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved.jsonl"
    shutil.copyfile(rows, moved)
    edit(run_copy, data__path=str(moved))
    moved.write_text(moved.read_text().replace("red", "RED"))
    with pytest.raises(EngineError, match="the training data is not what it was") as caught:
        tiny_runs.resume(run_copy)
    assert "--accept data" in caught.value.hint
    shutil.copyfile(rows, moved)
    assert isinstance(tiny_runs.resume(run_copy)[-1], RunFinished)


def test_another_base_is_refused(run_copy: Path, model_dir: Path, tmp_path: Path) -> None:
    from tests.support.tiny import make_tiny

    edit(run_copy, model__name=str(make_tiny("llama", tmp_path / "other", num_hidden_layers=1, seed=5)))
    with pytest.raises(EngineError, match="the base model is not what it was"):
        tiny_runs.resume(run_copy)


@pytest.mark.parametrize("path", all_knobs())
def test_every_knob_is_compared(path: str) -> None:
    """A knob added tomorrow is too: by name, by what lies there, or never heard of again."""
    now = with_value(TrainingConfig(), path, "another value")
    made = identity.made_with(TrainingConfig(), {})
    found = [d.name for d in identity.changed_settings(made, now)]
    assert found == ([] if path in (*identity.BY_CONTENT, *identity.UNHEARD) else [path])


def test_what_cannot_be_accepted_is_said(run_copy: Path) -> None:
    with pytest.raises(EngineError, match=r"'training\.sed' is nothing") as caught:
        list(recipe.resume(recipe.ResumeJob(str(run_copy), ("training.sed",)), Control()))
    assert caught.value.hint == "did you mean 'training.seed'?"


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
