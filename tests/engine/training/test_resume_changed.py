"""Resumed with something changed: what is refused by name, what is accepted, and what it then does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig, all_knobs, get_value, with_value
from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.events import (
    Noticed,
    RunFinished,
    StepFinished,
)
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import identity, recipe
from tests.engine.training.halves import STEPS, after_step, stop, train_until
from tests.support import tiny_runs


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


ANOTHER = {"data.leave_out": "3, 7"}
"""Where only what a value means is compared."""


@pytest.mark.parametrize("path", all_knobs())
def test_every_knob_is_compared(path: str) -> None:
    """A knob added tomorrow is too: by name, by what lies there, or never heard of again."""
    now = with_value(TrainingConfig(), path, ANOTHER.get(path, "another value"))
    made = identity.made_with(TrainingConfig(), {})
    found = [d.name for d in identity.changed_settings(made, now)]
    assert found == ([] if path in (*identity.BY_CONTENT, *identity.UNHEARD) else [path])


def test_what_cannot_be_accepted_is_said(run_copy: Path) -> None:
    with pytest.raises(EngineError, match=r"'training\.sed' is nothing") as caught:
        list(recipe.resume(recipe.ResumeJob(str(run_copy), ("training.sed",)), Control()))
    assert caught.value.hint == "did you mean 'training.seed'?"
