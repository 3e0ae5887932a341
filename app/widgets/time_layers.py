"""Curves over time, and where a time and a value lie in a chart of them. No painting."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PySide6.QtCore import QRectF


@dataclass(frozen=True)
class Layer:
    """A curve: `times` in Unix seconds, `values` in the chart's unit, NaN for a gap. A band is filled down to zero and
    hides what lies behind it: bands come from the highest to the lowest."""

    name: str
    title: str
    colour: str
    times: Any
    values: Any
    is_band: bool = False
    is_estimated: bool = False
    """Then a band is hatched."""


@dataclass(frozen=True)
class TimePlot:
    """`area` in pixels shows the times from `start` to `end` (Unix seconds) and values from 0 to `top`."""

    area: QRectF
    start: float
    end: float
    top: float

    def x_of(self, at: Any) -> Any:
        """Of one time or an array of them."""
        return self.area.left() + (at - self.start) * (self.area.width() / (self.end - self.start))

    def y_of(self, value: Any) -> Any:
        """Of one value or an array of them."""
        return self.area.bottom() - value * (self.area.height() / self.top)


def value_near(layer: Layer, at: float) -> float:
    """At the sample nearest to `at`; NaN where that is unknown."""
    if not len(layer.times):
        return math.nan
    place = min(int(np.searchsorted(layer.times, at)), len(layer.times) - 1)
    if place and at - layer.times[place - 1] < layer.times[place] - at:
        place -= 1
    return float(layer.values[place])


def highest(layer: Layer) -> float:
    known = np.asarray(layer.values)[np.isfinite(layer.values)]
    return float(known.max()) if known.size else 0.0


def runs_of_known(values: Any) -> list[tuple[int, int]]:
    """(first, one past the last) of each stretch without NaN."""
    known = np.isfinite(values)
    if known.all():
        return [(0, len(values))] if len(values) else []
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def columns_of(xs: Any, values: Any, width: int) -> Any:
    """The highest value in each of `width` columns of pixels; 0 where it is unknown. `xs` are in pixels and ordered."""
    at = np.arange(width) + 0.5
    right = np.clip(np.searchsorted(xs, at), 1, max(1, len(xs) - 1))
    known = np.isfinite(values)
    found = np.zeros(width)
    if known.sum() > 1:
        is_between = known[right - 1] & known[right] & (at >= xs[0]) & (at <= xs[-1])
        found = np.where(is_between, np.interp(at, xs[known], values[known]), 0.0)
    column = np.floor(xs).astype(int)
    is_shown = known & (column >= 0) & (column < width)
    np.maximum.at(found, column[is_shown], values[is_shown])
    return found
