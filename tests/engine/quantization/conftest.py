"""A home of its own for each test, the CPU as the device, and jobs as lists of events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import config_io, jobs
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.control import Control
from qlora_engine.device import DevicePlan
from qlora_engine.events import Event, RunFinished
from qlora_engine.jobs import QualityJob
from qlora_engine.quantization.report import QualityReport, report_from
from tests.support.tiny import instruction_rows, write_rows

CPU = DevicePlan("cpu", 0, "float32", "a test")
WHOLE = {"intermediate_size": 128}
"""Sizes whose rows are whole blocks of 64, which bitsandbytes dequantizes rightly on the CPU."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", instruction_rows(30))


Configure = Callable[..., TrainingConfig]


@pytest.fixture
def configured(rows: Path) -> Configure:
    def make(model: Path, **changes: Any) -> TrainingConfig:
        values = {
            "model.name": str(model), "model.device": "cpu", "data.path": str(rows), "data.held_out_fraction": 0.3,
            **{path.replace("__", "."): value for path, value in changes.items()},
        }  # fmt: skip
        config = TrainingConfig()
        for path, value in values.items():
            config = with_value(config, path, value)
        return config

    return make


def events_of(config: TrainingConfig, control: Control | None = None, **options: Any) -> list[Event]:
    job = QualityJob(config_io.to_dict(config), options)
    return list(jobs.carry_out(jobs.decode(jobs.encode(job)), control or Control()))


def measured(config: TrainingConfig, **options: Any) -> QualityReport:
    """The report of a job that must end well."""
    last = events_of(config, **options)[-1]
    assert isinstance(last, RunFinished), last
    return report_from(last.result)
