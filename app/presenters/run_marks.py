"""Events of a run that stand on the charts over time."""

from __future__ import annotations

from typing import NamedTuple

from app.presenters.words import count_text, number_text
from qlora_engine import events as ev

OUT_OF_MEMORY = "memory."
"""What the codes of notices begin with that tell of memory that ran out."""


class Mark(NamedTuple):
    """Its Unix time, its kind (evaluation, checkpoint, out of memory), and what it was."""

    unix: float
    kind: str
    text: str


def mark_of(event: ev.Event, newest_unix: float) -> Mark | None:
    """`newest_unix` stands for the time of events that do not tell theirs."""
    match event:
        case ev.EvaluationFinished():
            text = f"held-out loss {number_text(event.loss)} at step {count_text(event.step)}"
            return Mark(event.unix_time, "evaluation", text)
        case ev.CheckpointSaved():
            return Mark(event.unix_time, "checkpoint", f"checkpoint at step {count_text(event.step)}")
        case ev.Noticed(level="warning") | ev.RunFailed() if event.code.startswith(OUT_OF_MEMORY):
            return Mark(newest_unix, "out of memory", event.message)
    return None
