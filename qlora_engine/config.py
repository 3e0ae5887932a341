"""The whole configuration of a run: a tree of frozen dataclasses, one knob per option.

Editing is `dataclasses.replace` or `with_value(config, "lora.rank", 16)`; checking is `validate(config)`,
which returns every issue with its dotted path. No torch here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qlora_engine import row_numbers
from qlora_engine.knobs import Knob, knobs_of, problem_with
from qlora_engine.tables.data import DataSettings
from qlora_engine.tables.keeping import CheckpointSettings, OutputSettings
from qlora_engine.tables.lora import INITS, TARGET_GROUPS, LoraSettings
from qlora_engine.tables.model import ModelSettings, QuantizationSettings
from qlora_engine.tables.training import OPTIMIZERS, SCHEDULES, TrainingSettings

__all__ = [
    "INITS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SCHEMA_VERSION",
    "TARGET_GROUPS",
    "CheckpointSettings",
    "DataSettings",
    "Issue",
    "LoraSettings",
    "ModelSettings",
    "OutputSettings",
    "QuantizationSettings",
    "TrainingConfig",
    "TrainingSettings",
    "all_knobs",
    "changed_from",
    "get_value",
    "tables",
    "validate",
    "with_value",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TrainingConfig:
    """A whole job file. Tables in the order in which they are written."""

    model: ModelSettings = field(default_factory=ModelSettings)
    quantization: QuantizationSettings = field(default_factory=QuantizationSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    output: OutputSettings = field(default_factory=OutputSettings)


@dataclass(frozen=True)
class Issue:
    """One problem of a configuration: `path` is dotted (`lora.rank`), `message` a sentence without it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def tables() -> dict[str, type]:
    """Table name -> dataclass, in file order."""
    return {f.name: f.default_factory for f in dataclasses.fields(TrainingConfig)}  # type: ignore[misc]


def all_knobs() -> dict[str, Knob]:
    """Dotted path -> knob, in file order."""
    return {
        f"{table}.{name}": found for table, cls in tables().items() for name, found in knobs_of(cls).items()
    }


def get_value(config: TrainingConfig, path: str) -> Any:
    table, name = path.split(".", 1)
    return getattr(getattr(config, table), name)


def with_value(config: TrainingConfig, path: str, value: Any) -> TrainingConfig:
    """A copy of `config` with one value changed; nothing is checked here."""
    table, name = path.split(".", 1)
    changed = dataclasses.replace(getattr(config, table), **{name: value})
    return dataclasses.replace(config, **{table: changed})


def changed_from(config: TrainingConfig, base: TrainingConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (value in `base`, value in `config`) wherever they differ."""
    pairs = ((path, get_value(base, path), get_value(config, path)) for path in all_knobs())
    return {path: (before, after) for path, before, after in pairs if before != after}


def validate(config: TrainingConfig) -> list[Issue]:
    """Every problem that can be seen without looking at the disk or the model, in file order."""
    ranges = ((path, problem_with(found, get_value(config, path))) for path, found in all_knobs().items())
    issues = [Issue(path, problem) for path, problem in ranges if problem]
    return issues or list(_cross_checks(config))


def _cross_checks(config: TrainingConfig) -> Iterator[Issue]:
    lora, training = config.lora, config.training
    if isinstance(lora.targets, str) and lora.targets not in TARGET_GROUPS:
        yield Issue(
            "lora.targets", f"must be one of {', '.join(TARGET_GROUPS)} or a list, not {lora.targets!r}"
        )
    if isinstance(lora.targets, tuple) and not lora.targets:
        yield Issue("lora.targets", "names no module; adapters need at least one")
    if training.micro_batch is not None and training.effective_batch % training.micro_batch:
        yield Issue(
            "training.micro_batch",
            f"must divide the effective batch: {training.effective_batch} rows are not a multiple of {training.micro_batch}",
        )
    if lora.init == "pissa":
        yield Issue(
            "lora.init",
            "PiSSA moves the largest components of each weight into the adapter, which a 4-bit base cannot give up: "
            "quantized a second time it would fit no published base; use LoftQ, made for quantized bases, or the default",
        )
    if lora.dora and lora.init == "loftq":
        yield Issue("lora.init", f"{INITS[lora.init]} cannot be combined with DoRA; choose one of the two")
    yield from _expert_checks(config)
    if not config.model.name.strip():
        yield Issue("model.name", "is empty; choose a model")
    yield from _data_checks(config.data)


def _data_checks(data: DataSettings) -> Iterator[Issue]:
    for path, weight in data.more.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 100:
            yield Issue(
                "data.more", f"{path!r} must be seen more than 0 and at most 100 times, not {weight!r}"
            )
        if path == data.path:
            yield Issue("data.more", f"{path!r} is the dataset itself; name another")
    try:
        row_numbers.parsed(data.leave_out)
    except ValueError as piece:
        yield Issue("data.leave_out", f"must name rows by number, as in 3, 8-12; {str(piece)!r} names none")
    if not data.path.strip():
        yield Issue("data.path", "is empty; choose a dataset")
    if data.train_on == "answers" and data.format == "text":
        yield Issue(
            "data.train_on", "plain text has no answers; train on everything, or choose another format"
        )


def _expert_checks(config: TrainingConfig) -> Iterator[Issue]:
    lora, quantization = config.lora, config.quantization
    if lora.experts and lora.dropout:
        yield Issue(
            "lora.dropout",
            "must be 0 with adapters on the experts: all tokens of an expert share one product",
        )
    if lora.experts and (lora.dora or lora.init == "loftq"):
        name = "DoRA" if lora.dora else INITS[lora.init]
        yield Issue("lora.experts", f"PEFT knows no {name} for experts; choose one of the two")
    if quantization.experts == "16bit" and quantization.expert_placement == "host":
        yield Issue(
            "quantization.expert_placement",
            "only experts in 4 bits are kept on the host; set quantization.experts to 4bit",
        )
