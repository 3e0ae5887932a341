"""Runs that something happens to, and what they told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlora_engine import config_io
from qlora_engine.client import InlineEngine
from qlora_engine.config import TrainingConfig
from qlora_engine.events import (
    Event,
)
from qlora_engine.jobs import TrainJob
from qlora_engine.runs.summary import list_runs


def engine_events(config: TrainingConfig) -> list[Event]:
    return list(InlineEngine().run(TrainJob(config_io.to_dict(config))))


def only_run(config: TrainingConfig) -> Any:
    (summary,) = list_runs(Path(config.output.runs_dir or ""))
    return summary
