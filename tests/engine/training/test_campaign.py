"""A fresh sample of the fault campaign every day; `make test-faults` tries all of it."""

from __future__ import annotations

import datetime as dt
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from qlora_engine import config_io
from qlora_engine.control import Control
from qlora_engine.events import StepFinished
from qlora_engine.jobs import TrainJob
from qlora_engine.training import recipe
from tests.support import fault_campaign, tiny_runs

CHEAP, RESUMED = 36, 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, rows: Path) -> dict[str, Path]:
    """One stopped after 2 of 3 steps, one finished; with the same settings."""
    place = tmp_path_factory.mktemp("campaign")
    settings = {
        "training__max_steps": 3,
        "training__eval_every_steps": 10,
        "checkpoint__every_steps": 1,
        "checkpoint__keep": 9,
    }
    finished = tiny_runs.finished_run(
        tiny_runs.tiny_config(model_dir, rows, place, output__name="finished", **settings)
    )
    control, events = Control(), []
    config = tiny_runs.tiny_config(model_dir, rows, place, output__name="stopped", **settings)
    for event in recipe.train(TrainJob(config_io.to_dict(config)), control):
        events.append(event)
        if isinstance(event, StepFinished) and event.step == 2:
            control.request_stop()
    return {"stopped": tiny_runs.run_dir(events), "finished": finished}


def chosen(runs: dict[str, Path]) -> list[fault_campaign.Case]:
    """Those of today: another sample every day, the same for everybody on it. QLORA_FAULTS=all tries each."""
    every = list(fault_campaign.cases(runs))
    if os.environ.get("QLORA_FAULTS") == "all":
        return every
    dice = random.Random(dt.datetime.now(dt.UTC).date().isoformat())
    slow = [case for case in every if case.reader == "resume" and case.run == "stopped"]
    quick = [case for case in every if case.reader != "resume"]
    return [*dice.sample(quick, CHEAP), *dice.sample(slow, RESUMED)]


@pytest.mark.timeout(0 if os.environ.get("QLORA_FAULTS") == "all" else 600)
def test_every_damaged_file_ends_in_a_sentence_or_goes_on_exactly(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    wanted = (runs["finished"] / "adapter" / "adapter_model.safetensors").read_bytes()
    ended, findings = Counter[str](), []
    for case in chosen(runs):
        try:
            ended[f"{case.reader}: {fault_campaign.outcome(case, runs, tmp_path / 'case', wanted)}"] += 1
        except Exception as error:  # noqa: BLE001 - each is a finding, and all are wanted
            findings.append(f"{case}: {type(error).__name__}: {error}"[:300])
            print(findings[-1], flush=True)
        if sum(ended.values()) % 100 == 0:
            print(f"{sum(ended.values())} cases: {dict(ended)}", flush=True)
    print(f"{sum(ended.values())} cases: {dict(ended)}; findings: {len(findings)}")
    assert findings == []
