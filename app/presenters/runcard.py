"""The run card: the one place that says what Start will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from app.presenters import numerals
from app.presenters.draft import CUSTOM, Draft
from app.presenters.problems import Problem
from app.presenters.words import count_text, duration_text, parameters_text, plural
from qlora_engine import config_io, paths
from qlora_engine.models.spec import ModelFacts
from qlora_engine.training.schedule import total_steps

TIME_KNOWN = "Told from the steps of earlier runs of this model"
TIME_UNKNOWN = "Known once a run of this model has steps"


@dataclass(frozen=True)
class RunCardState:
    headline: str
    tone: str
    rows: tuple[tuple[str, ...], ...]
    problems: tuple[Problem, ...]
    start_text: str
    can_start: bool
    note: str = ""


def run_card(
    draft: Draft,
    facts: ModelFacts | None,
    report: Mapping[str, Any] | None,
    memory_text: str,
    problems: Sequence[Problem],
    is_busy: bool,
    seconds: float | None = None,
) -> RunCardState:
    """`memory_text` is a guess until the data are read, and is marked as one. `is_busy`: this window trains another run.
    `seconds`: how long it will take; None where nothing comparable has run."""
    count = len(problems)
    is_too_large = memory_text.startswith("does not fit")
    ready = "Does not fit" if is_too_large else "Ready to train"
    return RunCardState(
        headline=f"{count_text(count)} to fix" if count else ready,
        tone="warning" if count or is_too_large else "good",
        rows=_rows(draft, facts, report, memory_text, seconds),
        problems=tuple(problems),
        start_text="Start anyway" if is_too_large else "Start training",
        can_start=not count and not is_busy,
        note="Another run is training. Put into the queue, this one starts when that has ended."
        if is_busy
        else "",
    )


def planned_steps(draft: Draft, report: Mapping[str, Any] | None) -> int | None:
    """Optimizer steps the run will take; None while the number of rows is unknown and nothing limits them."""
    training = draft.config.training
    if report is None:
        return training.max_steps
    return total_steps(training, int(report["train_rows"]))


def _rows(
    draft: Draft,
    facts: ModelFacts | None,
    report: Mapping[str, Any] | None,
    memory_text: str,
    seconds: float | None,
) -> tuple[tuple[str, ...], ...]:
    config = draft.config
    size = f" \u00b7 {parameters_text(facts.parameters)}" if facts is not None else ""
    rows_text = f" \u00b7 {plural(int(report['train_rows']), 'row')}" if report else ""
    kind = f"{config.quantization.quant_type.upper()}{' + double quantization' if config.quantization.double_quant else ''}"
    changed = len(draft.changes)
    steps = planned_steps(draft, report)
    batch = f"{count_text(config.training.effective_batch)} rows each"
    return (
        ("Model", short_name(config.model.name) + size, config.model.name),
        ("Data", short_name(config.data.path) + rows_text, config.data.path),
        ("Base", kind),
        ("Adapter", f"LoRA rank {count_text(config.lora.rank)}, alpha {numerals.short(config.lora.alpha)}"),
        ("Recipe", preset_title(draft.preset) + (f", {changed} changed" if changed else "")),
        ("Steps", f"{count_text(steps)}, {batch}" if steps else f"by {numerals.short(config.training.epochs)} epochs, {batch}"),
        ("Memory" if report or config.data.seq_len else "Memory, before data is read", memory_text),
        ("Time", duration_text(seconds), TIME_KNOWN if seconds is not None else TIME_UNKNOWN),
        ("Saved to", str(paths.runs_dir(config.output.runs_dir))),
    )  # fmt: skip


@cache
def preset_title(name: str) -> str:
    if name == CUSTOM:
        return "Your own"
    return next((preset.title for preset in config_io.presets() if preset.name == name), name)


def short_name(name: str) -> str:
    """The last part of a path; ids and plain names as they are."""
    return Path(name).name if Path(name).is_absolute() else name
