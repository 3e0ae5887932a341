"""A second start of the same run on the same machine tries nothing again, and trains the same; any other start does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlora_engine import config_io, paths
from qlora_engine.config import TrainingConfig, all_knobs
from qlora_engine.events import Event, PhaseChanged, RunFinished
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import known_start, recipe, room
from qlora_engine.training.fast import trial
from tests.engine.training.conftest import MakeConfig
from tests.support.tiny_runs import losses, train

LONGEST = "Trying a step with the longest rows"


def tried(seen: list[Event]) -> bool:
    assert isinstance(seen[-1], RunFinished), seen[-1]
    return any(isinstance(event, PhaseChanged) and event.text == LONGEST for event in seen)


def kept_files() -> list[Path]:
    return sorted((paths.cache_dir() / "starts").glob("*.json"))


def fast_paths(seen: list[Event]) -> Any:
    assert isinstance(seen[-1], RunFinished)
    return RunFolder(Path(str(seen[-1].result["run_dir"]))).record()["fast_paths"]


def test_the_second_start_tries_nothing_and_trains_the_same(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(make_config(training__max_steps=3))
    assert tried(first)
    assert len(kept_files()) == 1

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("tried again")

    with monkeypatch.context() as patch:
        patch.setattr(trial.Trial, "__init__", never)
        patch.setattr(recipe, "dry_step", never)
        patch.setattr("qlora_engine.training.loss.is_chunkable", never)
        again = train(make_config(training__max_steps=3))
        slower = train(make_config(training__max_steps=3, training__learning_rate=1e-5, training__seed=7))
    assert not tried(again)
    assert not tried(slower)
    assert losses(again) == losses(first), "bit for bit"
    assert fast_paths(again) == fast_paths(first)


def test_another_adapter_or_longer_rows_are_tried(make_config: MakeConfig) -> None:
    train(make_config(training__max_steps=1))
    assert tried(train(make_config(training__max_steps=1, lora__rank=3)))
    assert tried(train(make_config(training__max_steps=1, training__micro_batch=1)))
    assert not tried(train(make_config(training__max_steps=1)))


def test_memory_that_has_become_short_is_tried(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_config(training__max_steps=1))
    peak = max(json.loads(kept_files()[0].read_text(encoding="utf-8"))["peaks"].values())
    free = room.usable_bytes
    config = make_config(training__max_steps=1)
    with monkeypatch.context() as patch:
        calls = [0]

        def short(plan: Any) -> int:
            """Enough for the estimate; by the time of the longest rows another program has taken it."""
            calls[0] += 1
            return int(free(plan)) if calls[0] < asked[0] else peak

        asked = [10**9]
        patch.setattr(room, "usable_bytes", short)
        assert not tried(train(config))
        asked[0], calls[0] = calls[0], 0
        assert tried(train(make_config(training__max_steps=1)))
    monkeypatch.setattr(known_start, "_is_limited", lambda: True)
    assert tried(train(make_config(training__max_steps=1)))


@pytest.mark.parametrize(
    "damage",
    ["", "{}", "null", '{"ways": {"groups": [[0, 1]]}, "is_chunkable": true, "peaks": {}}', "[" * 100_000],
)
def test_what_was_kept_and_is_damaged_is_tried(make_config: MakeConfig, damage: str) -> None:
    first = train(make_config(training__max_steps=1))
    kept_files()[0].write_text(damage, encoding="utf-8")
    again = train(make_config(training__max_steps=1))
    assert tried(again)
    assert losses(again) == losses(first)
    assert fast_paths(again) == fast_paths(first)


def test_what_had_to_be_left_out_is_not_kept(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial.Trial, "differs", lambda *_, **__: "logits differ")
    assert tried(train(make_config(training__max_steps=1)))
    assert kept_files() == []
    assert tried(train(make_config(training__max_steps=1)))


def test_another_program_tries_anew(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    train(make_config(training__max_steps=1))
    monkeypatch.setattr(known_start, "_program", lambda: "changed")
    assert tried(train(make_config(training__max_steps=1)))


@pytest.fixture(scope="module")
def shape() -> Any:
    """What a key is made of, without a model."""
    embeddings = torch.nn.Embedding(4, 2)
    return SimpleNamespace(
        plan=SimpleNamespace(kind="cpu", torch_dtype_name="float32"), config=TrainingConfig(),
        model=SimpleNamespace(get_input_embeddings=lambda: embeddings),
    )  # fmt: skip


@pytest.mark.parametrize(
    "path", [p for p in all_knobs() if p.split(".")[0] in ("model", "quantization", "lora", "training")]
)
def test_every_setting_either_makes_another_start_or_is_named_as_one_that_no_trial_depends_on(
    path: str, shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = known_start._key(shape, {})
    changed, (table, name) = config_io.to_dict(shape.config), path.split(".")
    changed[table][name] = "something else"
    monkeypatch.setattr(config_io, "to_dict", lambda _: changed)
    is_indifferent = path.removeprefix("training.") in known_start.INDIFFERENT and path.startswith(
        "training."
    )
    assert (known_start._key(shape, {}) == before) == is_indifferent


def test_every_indifferent_setting_is_one() -> None:
    assert {f"training.{name}" for name in known_start.INDIFFERENT} <= set(all_knobs())
