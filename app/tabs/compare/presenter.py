"""Several runs as lines to draw and rows to read. The numbers are those of `qlora_engine.runs.comparison`. Without Qt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.presenters.experiment import result_heads, result_rows
from app.presenters.typed import SEED, value_text
from app.presenters.words import (
    UNKNOWN,
    bytes_text,
    capital,
    count_text,
    duration_text,
    number_text,
    rate_text,
)
from qlora_engine.runs import sweep
from qlora_engine.runs.comparison import Comparison, Side
from qlora_engine.runs.curves import typical_range

COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442", "#8C939E")
"""Okabe and Ito's; a run beyond the eighth begins again, and its name tells it apart."""
AXES = (("step", "Steps"), ("tokens", "Tokens"), ("seconds", "Time"))
AXIS_WORDS = {"step": "step", "tokens": "tokens", "seconds": "seconds"}
WHAT = (("loss", "Training loss"), ("held_out", "Held-out loss"), ("tokens_per_second", "Speed"))
UNITS = {"loss": "nats/token", "held_out": "nats/token", "tokens_per_second": "tokens/s"}


@dataclass(frozen=True)
class View:
    """How the curves are looked at. `smoothing`: 0 to below 1."""

    axis: str = "step"
    what: str = "loss"
    smoothing: float = 0.6
    is_log: bool = False
    is_clipped: bool = False


@dataclass(frozen=True)
class Line:
    """One run's curve; `is_dots` where there is a point only now and then."""

    title: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    is_dots: bool


@dataclass(frozen=True)
class Picture:
    """`bounds`: the lowest and highest value to show; None: all."""

    lines: tuple[Line, ...]
    bounds: tuple[float, float] | None


@dataclass(frozen=True)
class Experiment:
    """What the cells of an experiment came to so far. `rows` have as many cells as there are `heads`."""

    name: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def picture(found: Comparison, view: View) -> Picture:
    """For a pool thread: smoothing eight long curves takes a tenth of a second."""
    lines = tuple(_line(side, COLOURS[place % len(COLOURS)], view) for place, side in enumerate(found.sides))
    from array import array

    bounds = typical_range([array("d", line.y) for line in lines]) if view.is_clipped else None
    return Picture(lines, bounds)


def _line(side: Side, colour: str, view: View) -> Line:
    curve = side.curve
    if view.what == "held_out":
        losses = [event.loss if math.isfinite(event.loss) else math.nan for event in curve.held_out]
        return Line(side.title, colour, curve.held_out_x(view.axis), losses, True)
    return Line(side.title, colour, curve.x(view.axis), curve.y(view.what, view.smoothing), False)


def experiments_of(paths: Sequence[Path]) -> list[Experiment]:
    """As they stand; of one experiment at least two runs are chosen."""
    chosen = {path.resolve() for path in paths}
    return [
        Experiment(planned.name, result_heads(planned), tuple(result_rows(planned, sweep.results(planned))))
        for planned in sweep.among(paths)
        if sum(path.resolve() in chosen for row in planned.runs for path in row) > 1
    ]


def titles(found: Comparison) -> tuple[str, ...]:
    return tuple(side.title for side in found.sides)


def figure_rows(found: Comparison) -> list[tuple[str, ...]]:
    """What each run came to: the name of a figure, then its text for every run."""
    figures = [side.figures for side in found.sides]
    return [
        ("Held-out loss before", *(number_text(f.loss_before) for f in figures)),
        ("Best held-out loss", *(_at(f.best_loss, f.best_step) for f in figures)),
        ("Held-out loss of the result", *(number_text(f.loss_after) for f in figures)),
        ("Steps", *(count_text(f.steps) for f in figures)),
        ("Tokens", *(count_text(f.tokens) for f in figures)),
        ("Training time", *(duration_text(f.seconds) for f in figures)),
        ("Speed", *(rate_text(f.tokens_per_second or None) for f in figures)),
        ("Peak memory", *(bytes_text(f.measured_peak_bytes) for f in figures)),
    ]  # fmt: skip


def difference_rows(found: Comparison) -> list[tuple[str, ...]]:
    """Only what is not the same in all: its name, then its value in every run."""
    return [
        (capital(one.label), *(_shown(value, is_counted=not one.path.endswith(SEED)) for value in one.values))
        for one in found.differences
    ]


def _at(loss: float | None, step: int | None) -> str:
    return number_text(loss) + (
        f" at step {count_text(step)}" if loss is not None and step is not None else ""
    )


def _shown(value: Any, *, is_counted: bool) -> str:
    if value is None:
        return UNKNOWN
    return (
        ", ".join(str(part) for part in value)
        if isinstance(value, tuple)
        else value_text(value, is_counted=is_counted)
    )
