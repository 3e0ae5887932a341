"""What is kept of runs: the details of one, and which can be gone on with, tried or exported."""

from __future__ import annotations

from collections.abc import Sequence

from app.presenters.words import UNKNOWN, bytes_text, date_text, duration_text, number_text, ratio_text
from qlora_engine.runs.summary import RunSummary

STATE_WORDS = {
    "new": "new",
    "running": "running",
    "paused": "paused",
    "stopped": "stopped",
    "crashed": "broken off",
    "failed": "failed",
    "finished": "finished",
    "unreadable": "unreadable",
}


def interrupted_run(summaries: Sequence[RunSummary], unfinished: str | None = None) -> RunSummary | None:
    """What a start offers to go on with: the run that the window left unfinished, else the newest if it broke off."""
    left = next((s for s in summaries if str(s.path) == unfinished), None)
    if left is not None and left.is_resumable:
        return left
    newest = summaries[0] if summaries else None
    return newest if newest is not None and newest.state == "crashed" and newest.is_resumable else None


def usable_runs(summaries: Sequence[RunSummary]) -> tuple[RunSummary, ...]:
    """Runs with an adapter to try or export."""
    return tuple(s for s in summaries if s.has_adapter)


def run_title(summary: RunSummary) -> str:
    """`starter-20261123-1402 \u2013 held-out loss 3.168 \u2192 0.449`."""
    return f"{summary.run_id} \u2013 held-out loss {loss_text(summary)}"


def loss_text(summary: RunSummary) -> str:
    if summary.loss_before is None and summary.loss_after is None:
        return UNKNOWN
    return f"{number_text(summary.loss_before)} \u2192 {number_text(summary.loss_after)}"


def detail_rows(summary: RunSummary) -> tuple[tuple[str, ...], ...]:
    seconds = (
        summary.finished_unix - summary.created_unix
        if summary.finished_unix is not None and summary.created_unix is not None
        else None
    )
    return (
        ("State", STATE_WORDS.get(summary.state, summary.state)),
        ("Model", summary.model),
        ("Data", summary.data),
        ("Held-out loss", loss_text(summary)),
        ("Steps", _steps(summary)),
        ("Peak memory", f"{bytes_text(summary.measured_peak_bytes)} measured, {bytes_text(summary.predicted_peak_bytes)} predicted"),
        ("Started", date_text(summary.created_unix)),
        ("Took", duration_text(seconds)),
        ("Folder", str(summary.path)),
    )  # fmt: skip


def _steps(summary: RunSummary) -> str:
    return ratio_text(summary.last_step, summary.total_steps)
