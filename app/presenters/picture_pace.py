"""How often the pictures of a run that goes on are drawn: on a CPU whoever draws takes the time of whoever trains.

Two processors that multiply together wait for each other, so that what is taken of one is lost on both.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.presenters.run_fold import RunFold


@dataclass(frozen=True)
class PicturePace:
    """Times between two pictures, in the unit of their names."""

    large_seconds: float
    """Of the loss."""
    small_seconds: float
    """Of the small charts."""
    memory_ms: int
    """Of the memory over time."""
    words_ms: int
    """Of what is told in words and figures."""


ON_GPU = PicturePace(large_seconds=0.0, small_seconds=3.0, memory_ms=500, words_ms=100)
ON_CPU = PicturePace(large_seconds=3.0, small_seconds=6.0, memory_ms=3000, words_ms=500)


def pace_of(run: RunFold) -> PicturePace:
    """That of the run's device, once it has told which."""
    return ON_CPU if run.is_live and run.plan is not None and run.plan.device == "cpu" else ON_GPU
