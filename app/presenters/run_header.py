"""The head of the chosen run: its name, where it stands in one sentence, and what can be done with it now."""

from __future__ import annotations

from dataclasses import dataclass

from app.presenters.run_fold import RunFold
from app.presenters.run_rows import LIVE, STATES
from app.presenters.runcard import RunCardState
from app.presenters.runs import loss_text
from app.presenters.words import count_text, duration_text, of_text, plural
from qlora_engine.runs.index import RunEntry

START, RESUME, TRY = "start", "resume", "try"


@dataclass(frozen=True)
class RunHeader:
    """`action` is what the primary button does: `start`, `resume`, `try`, or nothing. `share`: 0 to 1, None if unknown."""

    name: str
    sentence: str
    tone: str = ""
    action: str = ""
    action_text: str = ""
    can_act: bool = True
    is_live: bool = False
    can_pause: bool = False
    pause_text: str = "Pause"
    can_stop: bool = False
    share: float | None = None


def several_header(count: int) -> RunHeader:
    return RunHeader(plural(count, "run"), "Their curves, and what differs between them")


def draft_header(
    name: str, card: RunCardState, queue_place: int | None = None, ends_text: str = ""
) -> RunHeader:
    """Of the run that is being prepared."""
    return RunHeader(
        name or "New run",
        _queued_text(queue_place, ends_text) + card.headline,
        card.tone,
        START,
        card.start_text,
        can_act=card.can_start,
    )


def _queued_text(place: int | None, ends_text: str) -> str:
    """`place` is 0 for one that was taken from the queue and has not begun to tell of itself."""
    ends = f" and ends about {ends_text}" if ends_text else ""
    if place is None:
        return ""
    return (
        f"It is its turn: it starts now{ends}. "
        if place == 0
        else f"Queued, place {count_text(place)}: it starts by itself{ends}. "
    )


def own_header(run: RunFold, is_resumable: bool) -> RunHeader:
    """Of the run that this window trains, or trained last."""
    name = run.run_id or "The new run"
    if not run.is_live:
        return _ended(name, run.state, run.phase_text, is_resumable)
    is_pausing = run.status.is_pausing
    return RunHeader(
        name=name,
        sentence=live_sentence(run),
        tone="accent",
        is_live=True,
        can_pause=run.state in ("running", "paused"),
        pause_text="Continue" if run.state == "paused" else "Keep going" if is_pausing else "Pause",
        can_stop=run.state != "stopping",
        share=run.share if run.share is not None else run.status.progress,
    )


def live_sentence(run: RunFold) -> str:
    """`Training, step 120 of 800, 14 min left`."""
    step = run.last_step
    if run.status.is_pausing:
        at = f", step {of_text(step.step, step.total_steps)}" if step else ""
        return f"Pausing{at}. It pauses after this micro-batch"
    if step is None or run.state != "running":
        return run.phase_text
    left = f", {duration_text(run.seconds_left)} left" if run.seconds_left is not None else ""
    return f"{run.phase_text}, step {of_text(step.step, step.total_steps)}{left}"


def kept_header(entry: RunEntry | None, run: RunFold, state: str) -> RunHeader:
    """Of a run that its folder tells of."""
    if entry is None:
        return RunHeader("n/a", "Its folder cannot be read", "warning")
    summary = entry.summary
    if state in LIVE:
        share = run.share
        step = f", step {of_text(run.step, run.total_steps)}" if run.total_steps else ""
        is_paused, is_stopping = run.state == "paused", run.state == "stopping"
        word = "Stopping" if is_stopping else "Paused" if is_paused else "Training"
        return RunHeader(
            entry.title, f"{word} in another program{step}", "accent", is_live=True, can_pause=not is_stopping,
            pause_text="Continue" if is_paused else "Pause", can_stop=not is_stopping, share=share,
        )  # fmt: skip
    at = (
        f" at step {of_text(summary.last_step, summary.total_steps)}"
        if summary.last_step and summary.total_steps
        else ""
    )
    told = f"held-out loss {loss_text(summary)}" if state == "finished" else at.strip()
    return _ended(entry.title, state, told, summary.is_resumable)


def _ended(name: str, state: str, told: str, is_resumable: bool) -> RunHeader:
    word, tone = STATES[state][1:] if state in STATES else (state, "")
    sentence = f"{word}: {told}" if told and not told.startswith(word) else told or word
    shown_tone = "" if tone == "quiet" else tone
    if state == "finished":
        return RunHeader(name, sentence, shown_tone, TRY, "Try it")
    if is_resumable:
        return RunHeader(name, sentence, shown_tone, RESUME, "Resume")
    return RunHeader(name, sentence, shown_tone)
