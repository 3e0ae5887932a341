"""Whole runs on tiny models, in this process: settings by dotted path, events as a list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig, validate, with_value
from qlora_engine.control import Control
from qlora_engine.events import Event, RunFinished, StepFinished
from qlora_engine.jobs import ResumeJob, TrainJob
from tests.support.tiny import write_rows

E = TypeVar("E", bound=Event)
WORDS = [
    "red",
    "green",
    "blue",
    "water",
    "plants",
    "seven",
    "evening",
    "fox",
    "dog",
    "capital",
    "Paris",
    "number",
    "small",
]
QUICK: dict[str, Any] = {
    "model.device": "cpu",
    "lora.rank": 4,
    "data.held_out_fraction": 0.2,
    "training.max_steps": 4,
    "training.effective_batch": 4,
    "training.micro_batch": 2,
    "training.learning_rate": 0.01,
    "training.optimizer": "adamw_torch_fused",
    "training.eval_every_steps": 2,
    "training.end_rows": 0,
}


def varied_rows(count: int) -> list[dict[str, str]]:
    """Alpaca rows whose answers are from 1 to about 12 words long, no two the same."""
    return [
        {
            "instruction": f"Say {WORDS[n % len(WORDS)]} {n}",
            "input": "",
            "output": " ".join(WORDS[(n * 5 + k) % len(WORDS)] for k in range(1 + (n * 7) % 12)),
        }
        for n in range(count)
    ]


def data_file(folder: Path, count: int = 30) -> Path:
    return write_rows(folder / "rows.jsonl", varied_rows(count))


def tiny_config(model: Path, data: Path, runs: Path, **changes: Any) -> TrainingConfig:
    """A run of seconds. `changes` are dotted paths with `__` for the dot: `lora__rank=8`."""
    values = {"model.name": str(model), "data.path": str(data), "output.runs_dir": str(runs), **QUICK}
    values |= {path.replace("__", ".", 1): value for path, value in changes.items()}
    config = TrainingConfig()
    for path, value in values.items():
        config = with_value(config, path, value)
    assert validate(config) == []
    return config


def train(config: TrainingConfig, control: Control | None = None) -> list[Event]:
    """Every event of a new run."""
    from qlora_engine.training import recipe

    return list(recipe.train(TrainJob(config_io.to_dict(config)), control or Control()))


def resume(run_dir: Path | str, control: Control | None = None) -> list[Event]:
    """Every event of going on with a run."""
    from qlora_engine.training import recipe

    return list(recipe.resume(ResumeJob(str(run_dir)), control or Control()))


def of(events: Iterable[Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def run_dir(events: Sequence[Event]) -> Path:
    """The folder of a run that ended."""
    return Path(events[-1].result["run_dir"])  # type: ignore[attr-defined]


def finished_run(config: TrainingConfig) -> Path:
    """The folder of a run that went to its end."""
    events = train(config)
    assert isinstance(events[-1], RunFinished)
    return run_dir(events)


def losses(events: Iterable[Event]) -> list[float]:
    return [event.loss for event in of(events, StepFinished)]
