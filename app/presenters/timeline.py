"""What a run answered to its fixed prompts from evaluation to evaluation, as rows to read. Without Qt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.presenters.words import count_text, number_text, plural
from qlora_engine.runs.timeline import Timeline

COLUMNS = ("Step", "Held-out loss", "Answer")


@dataclass(frozen=True)
class TimelineRow:
    """`is_changed`: the answer differs from the one before it."""

    step_text: str
    loss_text: str
    answer: str
    is_changed: bool


@dataclass(frozen=True)
class TimelineState:
    """`prompts` can be chosen from; `chosen` is the place of the one shown, -1 for none."""

    prompts: tuple[str, ...]
    chosen: int
    rows: tuple[TimelineRow, ...]
    summary: str


def timeline_state(found: Sequence[Timeline], chosen: str) -> TimelineState:
    """`chosen` is a prompt; the first one is shown when there is none of that text."""
    prompts = tuple(timeline.prompt for timeline in found)
    if not prompts:
        return TimelineState((), -1, (), "")
    place = prompts.index(chosen) if chosen in prompts else 0
    points = found[place].points
    rows = tuple(
        TimelineRow(
            step_text="0, before training" if point.step == 0 else count_text(point.step),
            loss_text=number_text(point.held_out_loss),
            answer=point.answer or "(nothing)",
            is_changed=index > 0 and point.answer != points[index - 1].answer,
        )
        for index, point in enumerate(points)
    )
    changes = sum(row.is_changed for row in rows)
    return TimelineState(prompts, place, rows, f"{plural(len(rows), 'answer')}, {plural(changes, 'change')}")
