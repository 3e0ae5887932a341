"""The fixed prompts of a run with what was answered at each evaluation, in order. Torch-free.

The answers stand in `metrics.jsonl`, one line each, appended as they are given: a kill loses at most the line being
written, and an evaluation that was done again after a resume answers anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qlora_engine.events import EvaluationFinished, Event, SampleAnswered


@dataclass(frozen=True)
class TimelinePoint:
    """One answer. `held_out_loss` is that of the same evaluation; None when it was not measured."""

    step: int
    answer: str
    tokens: int
    seconds: float
    held_out_loss: float | None


@dataclass(frozen=True)
class Timeline:
    """A prompt's answers, the earliest first; step 0 is before training."""

    prompt: str
    points: tuple[TimelinePoint, ...]


def timelines(events: Iterable[Event]) -> tuple[Timeline, ...]:
    """Each fixed prompt in the order in which it was first asked; of several answers at one step the newest counts."""
    answers: dict[str, dict[int, SampleAnswered]] = {}
    losses: dict[int, float] = {}
    for event in events:
        if isinstance(event, SampleAnswered):
            answers.setdefault(event.prompt, {})[event.step] = event
        elif isinstance(event, EvaluationFinished):
            losses[event.step] = event.loss
    return tuple(
        Timeline(prompt, tuple(_point(by_step[step], losses.get(step)) for step in sorted(by_step)))
        for prompt, by_step in answers.items()
    )


def _point(event: SampleAnswered, loss: float | None) -> TimelinePoint:
    return TimelinePoint(event.step, event.answer, event.tokens, event.seconds, loss)
