"""Half a run, stopped at a moment, and what it came to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig
from qlora_engine.control import Control
from qlora_engine.events import (
    Event,
    StepFinished,
)
from qlora_engine.jobs import TrainJob
from qlora_engine.training import recipe
from tests.engine.training.conftest import MakeConfig

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
