"""How a run ended, in the words that a person looks for first: the error and its hint, or what was learned."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from app.presenters import numerals
from app.presenters.run_fold import RunFold
from app.presenters.words import capital, count_text, duration_text, number_text, of_text, plural
from qlora_engine import events as ev
from qlora_engine.errors import EngineError
from qlora_engine.runs import endings
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.summary import RunSummary

EARLY = "training.early_stop"


@dataclass(frozen=True)
class Outcome:
    """Empty `text`: nothing to say. `accepts` names what a resume would have to accept, when that is what stopped it."""

    text: str = ""
    hint: str = ""
    tone: str = "accent"
    is_resumable: bool = False
    accepts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ending:
    """What a run's record tells of its end."""

    code: str = ""
    message: str = ""
    hint: str = ""
    best_step: int | None = None
    seconds: float | None = None
    ends: ev.EndingsCounted | None = None


def ending_of(path: Path) -> Ending:
    """Read from the record; empty where there is none."""
    try:
        record = RunFolder(path).record()
    except EngineError as problem:
        return Ending(problem.code, problem.message, problem.hint)
    error = record.get("error") or {}
    return Ending(
        str(error.get("code", "")), str(error.get("message", "")), str(error.get("hint", "")),
        record.get("best_step"), record.get("train_seconds"), endings.of_record(record),
    )  # fmt: skip


def outcome_of(state: str, run: RunFold, ending: Ending, summary: RunSummary | None) -> Outcome:
    is_resumable = summary is not None and summary.is_resumable
    match state:
        case "failed":
            return _failed(run, ending, is_resumable)
        case "crashed":
            text = "This run broke off: its program ended without a word."
            return Outcome(text, ending.message and capital(ending.message), "warning", is_resumable)
        case "stopped":
            text = f"Stopped at step {of_text(run.step, run.total_steps)}." if run.total_steps else "Stopped."
            hint = "It can go on from its newest checkpoint." if is_resumable else "Nothing was saved of it."
            return Outcome(text, hint, "accent", is_resumable)
        case "finished":
            return _finished(run, ending, summary)
    return Outcome()


def _failed(run: RunFold, ending: Ending, is_resumable: bool) -> Outcome:
    code, message, hint = ending.code, ending.message, ending.hint
    if isinstance(run.end, ev.RunFailed):
        code, message, hint = run.end.code, run.end.message, run.end.hint
    accepts = accepted_names(hint) if code == "resume.differs" else ()
    text = f"{capital(message)}." if message else "This run failed."
    return Outcome(text, capital(hint), "bad", is_resumable, accepts)


def accepted_names(hint: str) -> tuple[str, ...]:
    """The names after each `--accept` of the hint of a refused resume."""
    return tuple(re.findall(r"--accept ([\w.]+)", hint))


def _finished(run: RunFold, ending: Ending, summary: RunSummary | None) -> Outcome:
    before = run.loss_before if run.loss_before is not None else summary.loss_before if summary else None
    after = summary.loss_after if summary is not None else None
    if after is None and run.last_evaluation is not None:
        after = run.last_evaluation.loss
    if before is None or after is None:
        learned = "Finished. No held-out loss was measured."
    else:
        learned = f"Learned: held-out loss {number_text(before)} before, {number_text(after)} after ({numerals.change(after / before - 1)})."
    parts = [_ends(ending), _kept_words(run, ending), _why_ended(run), _took(ending)]
    is_well = ending.ends is None or endings.is_most(ending.ends)
    return Outcome(learned, " ".join(part for part in parts if part), "good" if is_well else "warning")


def _ends(ending: Ending) -> str:
    return f"{endings.sentence(ending.ends)}." if ending.ends is not None else ""


def _kept_words(run: RunFold, ending: Ending) -> str:
    best, last = ending.best_step, run.step
    if not best or not last:
        return ""
    if best == last:
        return f"The last step, {count_text(last)}, was kept: none was better."
    return f"Step {of_text(best, last)} was kept: its held-out loss was the lowest."


def _why_ended(run: RunFold) -> str:
    early = next((m for m in reversed(run.notices) if m.code == EARLY), None)
    if early is not None:
        return f"{early.message}."
    return f"It went through all of its {plural(run.total_steps, 'step')}." if run.total_steps else ""


def _took(ending: Ending) -> str:
    return f"It trained for {duration_text(ending.seconds)}." if ending.seconds else ""
