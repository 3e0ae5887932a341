"""Packed rows are tried on the loaded model; one that lets them see each other trains them one by one, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_engine.events import DatasetPrepared, Event, Noticed, PlanMade
from tests.support import tiny_runs
from tests.support.tiny import make_tiny


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
