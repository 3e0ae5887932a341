"""The starter job: what a newcomer runs first, in the window and with `qlora starter`. Torch-free."""

from __future__ import annotations

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig

PRESET = "quick-look"
SETTINGS = (
    "training.max_steps=100",
    "training.effective_batch=4",
    "training.learning_rate=1e-3",
    "training.eval_every_steps=25",
    "training.eval_rows=40",
    "training.sample_tokens=64",
    "training.gradient_checkpointing=false",
)
"""What makes the preset finish in minutes on two CPU cores and still teaches the skill: many small steps learn it with
less computing than few large ones."""


def starter_job(*, is_cpu: bool) -> TrainingConfig:
    """The starter model on the starter dataset."""
    return config_io.with_overrides(config_io.load_preset(PRESET, is_cpu=is_cpu), list(SETTINGS))
