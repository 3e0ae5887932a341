"""Packed rows are tried on the loaded model; one that lets them see each other trains them one by one, and says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from qlora_engine import config_io
from qlora_engine.control import Control
from qlora_engine.data import pipeline
from qlora_engine.events import DatasetPrepared, Event, Noticed, PlanMade, RunFinished, StepFinished
from qlora_engine.jobs import TrainJob
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import recipe
from tests.support import tiny_runs
from tests.support.tiny import make_tiny
from tests.support.tiny_packed import to_bitsandbytes


def events_of(kind: str, tmp_path: Path, **changes: Any) -> list[Event]:
    model = make_tiny(kind, tmp_path / kind)
    config = tiny_runs.tiny_config(
        model, tiny_runs.data_file(tmp_path), tmp_path / "runs", data__packing=True, training__max_steps=1,
        training__eval_every_steps=1, **changes,
    )  # fmt: skip
    return tiny_runs.train(config)


@pytest.mark.parametrize(("kind", "leaks"), [("opt", True), ("llama", False)])
def test_rows_that_would_see_each_other_are_not_packed(
    kind: str, leaks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    events = events_of(kind, tmp_path)
    report = next(one for one in events if isinstance(one, DatasetPrepared)).report
    plan = next(one for one in events if isinstance(one, PlanMade))
    said = [one for one in events if isinstance(one, Noticed) and one.code == "data.unpacked"]
    assert len(said) == leaks
    assert report["packed_rows"] < report["train_rows"]
    assert plan.train_rows == (report["train_rows"] if leaks else report["packed_rows"])


def test_the_estimate_is_of_the_longest_row_and_the_tokens_that_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    events = events_of("llama", tmp_path, data__seq_len=200)
    report = next(one for one in events if isinstance(one, DatasetPrepared)).report
    plan = next(one for one in events if isinstance(one, PlanMade))
    assert plan.estimate is not None
    said = plan.estimate["settings"]
    assert said["seq_len"] == report["longest_row_tokens"] <= 200
    assert f"at most {report['most_trained_tokens']:,} tokens are trained" in said["seq_len_source"]


def test_the_trained_tokens_of_the_estimate_are_those_of_rows_as_they_are_packed(tmp_path: Path) -> None:
    """Once those of single rows were taken: the logits of several were missing from the predicted peak."""
    config = tiny_runs.tiny_config(
        make_tiny("llama", tmp_path / "base"),
        tiny_runs.data_file(tmp_path),
        tmp_path / "runs",
        data__seq_len=200,
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    single, packed = (
        pipeline.prepare(replace(config.data, packing=packing), tokenizer, seed=1, model_max_length=None)
        for packing in (False, True)
    )
    for found in (single, packed):
        assert found.most_trained_tokens == max(row.trained_count for row in found.train)
        assert found.longest_row_tokens == max(len(row.input_ids) for row in found.train)
    assert packed.most_trained_tokens > single.most_trained_tokens


def test_a_run_on_a_base_with_4_bits_of_its_own_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job asks for double quantization, the base has none: that is said, recorded, and no other setting at a resume."""
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    base = make_tiny("llama", tmp_path / "base", hidden_size=128)
    to_bitsandbytes(base, double_quant=False)
    config = tiny_runs.tiny_config(base, tiny_runs.data_file(tmp_path), tmp_path / "runs")
    control = Control()
    events = []
    for event in recipe.train(TrainJob(config_io.to_dict(config)), control):
        events.append(event)
        if isinstance(event, StepFinished) and event.step == 2:
            control.request_stop()
    said = next(one.message for one in events if isinstance(one, Noticed) and one.code == "model.converted")
    assert "NF4 without double quantization, used as they are" in said
    run = tiny_runs.run_dir(events)
    assert not RunFolder(run).job().quantization.double_quant
    end = tiny_runs.resume(run)[-1]
    assert isinstance(end, RunFinished), end
