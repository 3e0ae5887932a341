"""The large figures of a run, ready to show."""

from __future__ import annotations

from dataclasses import dataclass

from app.presenters import numerals
from app.presenters.run_fold import RunFold
from app.presenters.words import UNKNOWN, bytes_text, duration_text, number_text, rate_text, ratio_text

LOSS_DIGITS = 4


@dataclass(frozen=True)
class RunNumbers:
    step_text: str = UNKNOWN
    loss_text: str = UNKNOWN
    held_out_text: str = UNKNOWN
    held_out_note: str = ""
    speed_text: str = UNKNOWN
    eta_text: str = UNKNOWN
    peak_text: str = UNKNOWN
    peak_note: str = ""


def numbers_of(run: RunFold) -> RunNumbers:
    step, plan, measured = run.last_step, run.plan, run.last_evaluation
    return RunNumbers(
        step_text=ratio_text(run.step, run.total_steps) if run.total_steps is not None else UNKNOWN,
        loss_text=number_text(step.loss if step else None, LOSS_DIGITS),
        held_out_text=number_text(measured.loss if measured else None, LOSS_DIGITS),
        held_out_note=_held_out_note(run),
        speed_text=rate_text(step.tokens_per_second if step else None),
        eta_text=_eta_text(run),
        peak_text=bytes_text(step.peak_memory_bytes) if step and step.peak_memory_bytes else UNKNOWN,
        peak_note=f"predicted {bytes_text(plan.predicted_peak_bytes)}" if plan and plan.predicted_peak_bytes else "",
    )  # fmt: skip


def _eta_text(run: RunFold) -> str:
    if run.state == "finished":
        return "done"
    return duration_text(run.seconds_left if run.is_live else None)


def _held_out_note(run: RunFold) -> str:
    before, now = run.loss_before, run.last_evaluation
    if before is None or now is None or now.step == 0:
        return "before training" if before is not None else ""
    return f"{numerals.change(now.loss / before - 1)} since the start ({number_text(before)})"
