"""Several runs beside each other: their curves on common axes, what differs between them, and their figures. Torch-free.

Every number is that of `metrics.jsonl` and of the runs' records; nothing is interpolated.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_engine.config import TrainingConfig, all_knobs, get_value
from qlora_engine.errors import EngineError
from qlora_engine.runs import curves, notes
from qlora_engine.runs.curves import Curve
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.summary import RunSummary, summary_of

UNHEARD = ("output.",)
"""Where a run lies and what it is called is no difference."""
CONTENTS = (
    ("base model", ("model", "fingerprint")),
    ("data", ("data", "sha256")),
    ("device", ("plan", "device")),
    ("compute type", ("plan", "compute_dtype")),
    ("steps", ("plan", "total_steps")),
    ("rows trained on", ("plan", "train_rows")),
    ("rows held out", ("plan", "held_out_rows")),
    ("longest row, tokens", ("plan", "seq_len")),
    ("micro-batch", ("plan", "micro_batch")),
)
"""What a record tells of the content behind the settings: (label, path in the record)."""


@dataclass(frozen=True)
class Difference:
    """A setting, or what a record tells (`path` empty), that is not the same in all; None where a run has not told it."""

    path: str
    label: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Figures:
    """What a run came to. `tokens` and `seconds` are sums over its steps; `tokens_per_second` their quotient; `final_loss`
    is the training loss of its last step."""

    steps: int | None
    loss_before: float | None
    best_loss: float | None
    best_step: int | None
    loss_after: float | None
    final_loss: float | None
    tokens: int
    seconds: float
    tokens_per_second: float | None
    predicted_peak_bytes: int | None
    measured_peak_bytes: int | None


@dataclass(frozen=True)
class Side:
    """One run of a comparison."""

    summary: RunSummary
    title: str
    curve: Curve
    figures: Figures
    config: TrainingConfig | None
    """None: neither its record nor its job file can be read."""


@dataclass(frozen=True)
class Comparison:
    """Runs in the order in which they were asked for."""

    sides: tuple[Side, ...]
    differences: tuple[Difference, ...]

    def aligned(self, column: str = "loss") -> tuple[list[int], list[list[float | None]]]:
        """Every step that any run has, ascending, and for each run its value there, None where it has none."""
        by_step = [_by_step(side.curve, column) for side in self.sides]
        steps = sorted(set().union(*by_step))
        return steps, [[values.get(step) for step in steps] for values in by_step]

    def held_out(self) -> tuple[list[int], list[list[float | None]]]:
        """The held-out losses as `aligned`; of two at one step the newer."""
        by_step = [{event.step: _finite(event.loss) for event in side.curve.held_out} for side in self.sides]
        steps = sorted(set().union(*by_step))
        return steps, [[values.get(step) for step in steps] for values in by_step]

    def at(self, x: float, axis: str = "step", column: str = "loss") -> tuple[float | None, ...]:
        """What a crosshair at `x` shows of each run: its last value at or before it."""
        return tuple(side.curve.value_at(x, axis, column) for side in self.sides)

    def csv(self) -> str:
        """A line per step: step, then of each run tokens, seconds, loss and held-out loss; empty where unknown."""
        names = [(side.title, side.curve) for side in self.sides]
        held = [{event.step: event.loss for event in curve.held_out} for _, curve in names]
        rows = [_rows(curve) for _, curve in names]
        steps = sorted(set().union(*rows, *held))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        heads = ("tokens", "seconds", "loss", "held-out loss")
        writer.writerow(["step", *(_no_formula(f"{title}: {head}") for title, _ in names for head in heads)])
        for step in steps:
            cells = [
                [*map(_cell, found.get(step, (None, None, None))), _cell(losses.get(step))]
                for found, losses in zip(rows, held, strict=True)
            ]
            writer.writerow([step, *(cell for side in cells for cell in side)])
        return text.getvalue()


def compare(folders: Sequence[RunFolder]) -> Comparison:
    """Read the runs.

    Raises:
        EngineError: fewer than two, or one twice.
    """
    if len({folder.path.resolve() for folder in folders}) < max(2, len(folders)):
        raise EngineError("compare.runs", "a comparison needs two or more different runs", "name them all")
    sides = tuple(side_of(folder) for folder in folders)
    records = [_record(folder) for folder in folders]
    return Comparison(sides, (*_settings([side.config for side in sides]), *_contents(records)))


def side_of(folder: RunFolder) -> Side:
    """One run as a comparison shows it. Never raises for what its folder lacks."""
    summary, curve = summary_of(folder), curves.read(folder.path)
    title = notes.read(folder.path).name or folder.run_id
    return Side(summary, title, curve, figures(summary, curve), _config(folder))


def figures(summary: RunSummary, curve: Curve) -> Figures:
    """What a run came to."""
    columns = curve.columns
    tokens, seconds = math.fsum(columns["tokens"]), math.fsum(_known(columns["step_seconds"]))
    return Figures(
        steps=int(columns["step"][-1]) if len(curve) else summary.last_step,
        loss_before=summary.loss_before,
        best_loss=summary.best_loss,
        best_step=summary.best_step,
        loss_after=summary.loss_after,
        final_loss=_finite(columns["loss"][-1]) if len(curve) else None,
        tokens=int(tokens),
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else None,
        predicted_peak_bytes=summary.predicted_peak_bytes,
        measured_peak_bytes=summary.measured_peak_bytes,
    )


def settings_that_differ(configs: Sequence[TrainingConfig | None]) -> tuple[Difference, ...]:
    """The settings that are not the same in all, in file order; name and place of a run do not count."""
    return tuple(_settings(configs))


def _settings(configs: Sequence[TrainingConfig | None]) -> list[Difference]:
    found = []
    for path, knob in all_knobs().items():
        if path.startswith(UNHEARD):
            continue
        values = tuple(None if config is None else get_value(config, path) for config in configs)
        known = [value for value, config in zip(values, configs, strict=True) if config is not None]
        if any(value != known[0] for value in known[1:]):
            found.append(Difference(path, knob.label, values))
    return found


def _contents(records: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """What lies behind the settings and is not the same where it is known."""
    found = []
    for label, path in CONTENTS:
        values = tuple(_told(record, path) for record in records)
        known = [value for value in values if value is not None]
        if any(value != known[0] for value in known[1:]):
            found.append(Difference("", label, tuple(_short(value) for value in values)))
    return [*found, *_versions(records)]


def _versions(records: Sequence[Mapping[str, Any]]) -> list[Difference]:
    tables = [record.get("versions") or {} for record in records]
    names = dict.fromkeys(name for table in tables for name in table)
    found = [
        Difference("", f"version of {name}", tuple(table.get(name) for table in tables)) for name in names
    ]
    return [one for one in found if len({value for value in one.values if value is not None}) > 1]


def _told(record: Mapping[str, Any], path: tuple[str, str]) -> Any:
    table = record.get(path[0])
    return table.get(path[1]) if isinstance(table, Mapping) else None


def _short(value: Any) -> Any:
    """A fingerprint by its first characters."""
    if isinstance(value, Mapping):
        value = "-".join(str(part)[:12] for part in value.values())
    return value[:12] if isinstance(value, str) and len(value) > 40 else value


def _record(folder: RunFolder) -> Mapping[str, Any]:
    try:
        return folder.record()
    except EngineError:
        return {}


def _config(folder: RunFolder) -> TrainingConfig | None:
    try:
        return folder.job()
    except EngineError:
        return None


def _by_step(curve: Curve, column: str) -> dict[int, float | None]:
    pairs = zip(curve.columns["step"], curve.columns[column], strict=True)
    return {int(step): _finite(value) for step, value in pairs}


def _rows(curve: Curve) -> dict[int, tuple[float, float, float]]:
    columns = (curve.x("tokens"), curve.x("seconds"), curve.columns["loss"])
    return {
        int(step): row for step, row in zip(curve.columns["step"], zip(*columns, strict=True), strict=True)
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if value == value]


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(value).removesuffix(".0")


def _no_formula(text: str) -> str:
    """A name that a spreadsheet would compute is quoted."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
