"""What happened in a run, in words: a line of the log for each event that a person wants to read of."""

from __future__ import annotations

from dataclasses import dataclass

from app.presenters.in_window import in_window
from app.presenters.words import bytes_text, count_text, number_text, plural
from qlora_engine import events as ev
from qlora_engine.runs import endings

SHOWN_ANSWER = 120
TOLD_PHASES = ("loading", "downloading", "tokenizing", "preparing")


@dataclass(frozen=True)
class LogLine:
    clock: str
    text: str
    tone: str = ""


def words_of(event: ev.Event) -> tuple[str, str]:
    """The line and its tone; an empty line for what is not worth one."""
    match event:
        case ev.Noticed():
            text = f"{event.message}. {event.hint}" if event.hint else event.message
            return in_window(text), "warning" if event.level == "warning" else ""
        case ev.EndingsCounted():
            return endings.sentence(event), "" if endings.is_most(event) else "warning"
        case ev.RunFinished():
            return "Finished", "good"
        case ev.RunFailed():
            return in_window(f"{event.message}. {event.hint}"), "bad"
    return _preparing(event) or _training(event), ""


def _preparing(event: ev.Event) -> str:
    match event:
        case ev.RunStarted():
            return f"{'Resumed' if event.is_resumed else 'Started'} as {event.run_id}"
        case ev.PhaseChanged() if event.phase in TOLD_PHASES:
            return event.text
        case ev.ModelLoaded(report=report):
            nested = "with" if report.get("is_double_quant") else "without"
            kind = str(report.get("quant_type", "")).upper()
            return f"Model loaded: {kind} {nested} double quantization, computing in {report.get('compute_dtype')}"
        case ev.AdaptersAttached():
            return f"{event.variant}: {count_text(event.trainable_parameters)} trainable parameters in {event.dtype}"
        case ev.DatasetPrepared(report=report):
            held_out = count_text(report.get("held_out_rows"))
            return f"Data: {plural(int(report['train_rows']), 'row')} to train on, {held_out} held out"
        case ev.PlanMade():
            rows = event.micro_batch * event.accumulation
            return f"Plan: {plural(event.total_steps, 'step')} of {plural(rows, 'row')} on {event.device}"
        case ev.OptimizerBuilt():
            text = f"Optimizer: {event.class_name}, {bytes_text(event.state_bytes)} of state"
            return f"{text}. {event.why_not_paged}" if event.why_not_paged else text
    return ""


def _training(event: ev.Event) -> str:
    match event:
        case ev.EvaluationFinished():
            best = ", the best so far" if event.is_best and event.step else ""
            return f"Held-out loss {number_text(event.loss)} at step {count_text(event.step)}{best}"
        case ev.SampleAnswered():
            answer = " ".join(event.answer.split())
            shown = answer if len(answer) <= SHOWN_ANSWER else answer[:SHOWN_ANSWER] + "\u2026"
            return f"Asked \u201c{event.prompt}\u201d at step {count_text(event.step)}: {shown}"
        case ev.CheckpointSaved():
            return f"Checkpoint at step {count_text(event.step)} saved ({bytes_text(event.total_bytes)})"
        case ev.Paused():
            return f"Paused at step {count_text(event.step)}"
        case ev.Continued():
            return f"Going on from step {count_text(event.step)}"
        case ev.RunStopped():
            return stopped_text(event)
    return ""


def stopped_text(event: ev.RunStopped) -> str:
    return "Stopped" + (", can be resumed" if event.is_resumable else "")
