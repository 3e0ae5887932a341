"""Whether two settings differ by more than chance: the same seeds under both, compared pair by pair. Torch-free.

Another seed is another split, order and start of the adapters, so runs of one setting scatter. Under the same seed both
settings see the same rows in the same order, and the differences scatter far less than the losses do.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
SHOWN = 1e-4
SAME = 1e-6
"""Relative; what is closer is the order in which a sum was added up, not a difference."""


@dataclass(frozen=True)
class Margin:
    """`difference`: mean of (other - base) over the seeds that both have. `noise`: half the width of its 95 % interval
    (Student's t); None for less than two seeds. `verdict`: better, worse, same, unknown or missing."""

    seeds: int
    difference: float | None
    noise: float | None
    verdict: str

    @property
    def words(self) -> str:
        """What a person is told."""
        return self.told(_plain)

    def told(self, number: Callable[[float], str]) -> str:
        """`words` with losses written by `number`, which gives them four decimals."""
        if self.difference is None:
            return "no held-out loss to compare"
        told = f"{number(abs(self.difference))} {'lower' if self.difference < 0 else 'higher'}"
        if self.verdict == "same":
            width = (
                f" (the noise of {self.seeds} seeds is ± {_amount(self.noise, number)})" if self.noise else ""
            )
            return f"no measurable difference{width}"
        if self.verdict == "unknown":
            return f"{told}; with one seed this cannot be told from chance"
        return f"{told} ± {_amount(self.noise or 0.0, number)} over {self.seeds} seeds"


def margin(base: Sequence[float | None], other: Sequence[float | None]) -> Margin:
    """Held-out losses of two settings under the same seeds, in the same order; None where a run has none."""
    pairs = [
        (a, b)
        for a, b in zip(base, other, strict=True)
        if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
    ]
    if not pairs:
        return Margin(0, None, None, "missing")
    differences = [b - a for a, b in pairs]
    difference, count = statistics.fmean(differences), len(pairs)
    noise = t_quantile(count - 1) * statistics.stdev(differences) / math.sqrt(count) if count > 1 else None
    least = SAME * max(abs(a) for a, _ in pairs)
    return Margin(count, difference, noise, _verdict(difference, noise, least))


def _plain(amount: float) -> str:
    return f"{amount:.4f}"


def _amount(noise: float, number: Callable[[float], str]) -> str:
    """Four decimals, as losses are shown; what vanishes in them is no zero."""
    return f"less than {number(SHOWN)}" if noise < SHOWN / 2 else number(noise)


def _verdict(difference: float, noise: float | None, least: float) -> str:
    if abs(difference) <= max(least, noise or 0.0):
        return "same"
    if noise is None:
        return "unknown"
    return "better" if difference < 0 else "worse"


@functools.cache
def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Student's t of which `confidence` of all values lie within +- this much."""
    low, high = 0.0, 1.0
    while _within(high, freedom) < confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """The share of Student's t between -t and t, by the finite sums of its even and odd degrees of freedom."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (1.0, 1.0) if freedom % 2 == 0 else (cosine, cosine)
    start = 1 if freedom % 2 == 0 else 2
    for k in range(start, freedom - 1, 2):
        term *= cosine * cosine * k / (k + 1)
        total += term
    if freedom % 2 == 0:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))
