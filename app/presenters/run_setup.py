"""What a run was started with, to read: every option by its table, those that differ from the defaults marked."""

from __future__ import annotations

from dataclasses import dataclass

from app.presenters import numerals
from app.presenters.typed import SEED, value_text
from app.presenters.words import UNKNOWN
from qlora_engine.config import TrainingConfig, all_knobs, changed_from, get_value
from qlora_engine.knobs import Knob

TABLES = (
    ("Model", "model."), ("Data", "data."), ("Adapter", "lora."), ("Training", "training."),
    ("Base in 4 bits", "quantization."), ("Checkpoints", "checkpoint."), ("Output", "output."),
)  # fmt: skip


@dataclass(frozen=True)
class SetupTable:
    """`rows`: (label, value, help)."""

    title: str
    rows: tuple[tuple[str, str, str], ...]


def setup_tables(config: TrainingConfig) -> tuple[SetupTable, ...]:
    """What a person looks for first, and whatever was changed; other expert options are left out."""
    knobs, changed = all_knobs(), changed_from(config, TrainingConfig())
    return tuple(
        SetupTable(
            title,
            tuple(
                (knob.label, _shown(knob, get_value(config, path)), knob.help.replace("`", ""))
                for path, knob in knobs.items()
                if path.startswith(prefix) and (path in changed or not knob.is_expert)
            ),
        )
        for title, prefix in TABLES
    )


def _shown(knob: Knob, value: object) -> str:
    if value is None:
        return "automatic" if knob.is_optional else UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if knob.choices and isinstance(value, str) and value in knob.choices:
        return knob.choices[value]
    if isinstance(value, tuple | dict) and not value:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value)
    text = value_text(value, is_counted=knob.name != SEED)
    return numerals.measured(text, knob.unit)
