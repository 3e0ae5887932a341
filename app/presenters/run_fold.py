"""Folds the events of a run into what the Train page shows. Mutable, bounded, without Qt."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.presenters.curves import Curves
from app.presenters.words import UNKNOWN, bytes_text, clock_text, duration_text, number_text
from qlora_engine import events as ev

LOG_LINES = 500
MEMORY_KEPT = 4
"""The newest samples, for figures in words; the charts read the run's trace."""
OUT_OF_MEMORY = "memory."
"""What the codes of notices begin with that tell of memory that ran out."""
LOSS_DIGITS = 4
SHOWN_ANSWER = 120
LIVE = ("starting", "running", "paused", "stopping")


@dataclass(frozen=True)
class LogLine:
    clock: str
    text: str
    tone: str = ""


@dataclass(frozen=True)
class RunNumbers:
    """The large figures, ready to show."""

    step_text: str = UNKNOWN
    loss_text: str = UNKNOWN
    held_out_text: str = UNKNOWN
    held_out_note: str = ""
    speed_text: str = UNKNOWN
    eta_text: str = UNKNOWN
    peak_text: str = UNKNOWN
    peak_note: str = ""


class Mark(NamedTuple):
    """An event on the charts over time: its Unix time, its kind (evaluation, checkpoint, out of memory), and what it was."""

    unix: float
    kind: str
    text: str


class RunFold:
    """One run as it was told. `state`: idle, starting, running, paused, stopping, finished, stopped, failed."""

    def __init__(self) -> None:
        self.state = "idle"
        self.is_pausing = False
        """Asked to pause; the engine does so after the micro-batch that it computes."""
        self.phase_text = ""
        self.progress: float | None = None
        self.run_id: str | None = None
        self.run_dir: str | None = None
        self.plan: ev.PlanMade | None = None
        self.optimizer: ev.OptimizerBuilt | None = None
        self.from_step = 0
        self.last_step: ev.StepFinished | None = None
        self.loss_before: float | None = None
        self.last_evaluation: ev.EvaluationFinished | None = None
        self.end: ev.Event | None = None
        self.samples: list[ev.SampleAnswered] = []
        self.series = Curves()
        self.memory: deque[Mapping[str, Any]] = deque(maxlen=MEMORY_KEPT)
        self.log: deque[LogLine] = deque(maxlen=LOG_LINES)
        self.marks: list[Mark] = []
        self.began_unix = self._newest_unix = time.time()
        self.version = 0

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @property
    def total_steps(self) -> int | None:
        if self.last_step is not None:
            return self.last_step.total_steps
        return self.plan.total_steps if self.plan else None

    @property
    def share(self) -> float | None:
        """Of the steps done, 0 to 1."""
        return self.step / self.total_steps if self.step and self.total_steps else None

    @property
    def step(self) -> int:
        """Steps done that count."""
        return self.last_step.step if self.last_step is not None else self.from_step

    def begin(self) -> None:
        self.state, self.phase_text = "starting", "Starting the engine"
        self.version += 1

    def asked_to_pause(self, is_wanted: bool) -> None:
        """What the person wants until the engine tells that it is so."""
        self.is_pausing = is_wanted
        self.phase_text = "Pausing after this micro-batch" if is_wanted else "Training"
        self.version += 1

    def asked_to_stop(self) -> None:
        self.state, self.phase_text = "stopping", "Stopping after this micro-batch"
        self.version += 1

    def fold(self, event: ev.Event) -> None:
        """Take one event in."""
        self.version += 1
        self._newest_unix = getattr(event, "unix_time", self._newest_unix)
        handler = getattr(self, f"_on_{type(event).__name__}", None)
        if handler is not None:
            handler(event)

    def numbers(self) -> RunNumbers:
        step, plan = self.last_step, self.plan
        return RunNumbers(
            step_text=f"{self.step} / {self.total_steps}" if self.total_steps is not None else UNKNOWN,
            loss_text=number_text(step.loss if step else None, LOSS_DIGITS),
            held_out_text=number_text(self.last_evaluation.loss if self.last_evaluation else None, LOSS_DIGITS),
            held_out_note=self._held_out_note(),
            speed_text=f"{number_text(step.tokens_per_second, 3)} tokens/s" if step else UNKNOWN,
            eta_text=self._eta_text(),
            peak_text=bytes_text(step.peak_memory_bytes) if step and step.peak_memory_bytes else UNKNOWN,
            peak_note=f"predicted {bytes_text(plan.predicted_peak_bytes)}" if plan and plan.predicted_peak_bytes else "",
        )  # fmt: skip

    def _eta_text(self) -> str:
        if self.state == "finished":
            return "done"
        return duration_text(self.last_step.eta_seconds if self.last_step and self.is_live else None)

    def _held_out_note(self) -> str:
        before, now = self.loss_before, self.last_evaluation
        if before is None or now is None or now.step == 0:
            return "before training" if before is not None else ""
        change = 100 * (now.loss / before - 1)
        return f"{change:+.0f} % since the start ({number_text(before)})"

    def _say(self, text: str, tone: str = "", unix: float | None = None) -> None:
        self.log.append(LogLine(clock_text((unix or time.time()) - self.began_unix), text, tone))

    # ------------------------------------------------------------ one handler per event

    def _on_RunStarted(self, event: ev.RunStarted) -> None:
        self.run_id, self.run_dir, self.began_unix = event.run_id, event.run_dir, event.unix_time
        if self.state == "starting":
            self.state, self.phase_text = "running", "Preparing"
        if event.is_resumed:
            self._forget_after(event.from_step)
        self._say(f"{'Resumed' if event.is_resumed else 'Started'} as {event.run_id}", unix=event.unix_time)

    def _forget_after(self, step: int) -> None:
        """A resume goes on from its checkpoint: what came after that is trained again."""
        self.series.forget_after(step)
        self.from_step = step
        self.samples = [sample for sample in self.samples if sample.step <= step]
        if self.last_step is not None and self.last_step.step > step:
            self.last_step = None
        if self.last_evaluation is not None and self.last_evaluation.step > step:
            self.last_evaluation = None

    def _on_PhaseChanged(self, event: ev.PhaseChanged) -> None:
        if self.state not in ("stopping", "paused") and not self.is_pausing:
            self.phase_text = event.text
        self.progress = None
        if event.phase in ("loading", "downloading", "tokenizing", "preparing"):
            self._say(event.text)

    def _on_Progressed(self, event: ev.Progressed) -> None:
        self.progress = event.done / event.total if event.total else None

    def _on_ModelLoaded(self, event: ev.ModelLoaded) -> None:
        report = event.report
        nested = "with" if report.get("is_double_quant") else "without"
        kind = str(report.get("quant_type", "")).upper()
        self._say(f"Model loaded: {kind} {nested} double quantization, computing in {report.get('compute_dtype')}")  # fmt: skip

    def _on_AdaptersAttached(self, event: ev.AdaptersAttached) -> None:
        self._say(f"{event.variant}: {event.trainable_parameters:,} trainable parameters in {event.dtype}")

    def _on_DatasetPrepared(self, event: ev.DatasetPrepared) -> None:
        report = event.report
        self._say(f"Data: {report.get('train_rows'):,} rows to train on, {report.get('held_out_rows'):,} held out")  # fmt: skip

    def _on_PlanMade(self, event: ev.PlanMade) -> None:
        self.plan = event
        self._say(
            f"Plan: {event.total_steps} steps of {event.micro_batch * event.accumulation} rows on {event.device}"
        )

    def _on_OptimizerBuilt(self, event: ev.OptimizerBuilt) -> None:
        self.optimizer = event
        text = f"Optimizer: {event.class_name}, {bytes_text(event.state_bytes)} of state"
        self._say(f"{text}. {event.why_not_paged}" if event.why_not_paged else text)

    def _on_StepFinished(self, event: ev.StepFinished) -> None:
        self.last_step = event
        if self.state == "running" and not self.is_pausing:
            self.phase_text = "Training"
        self.series.add_step(event)

    def _on_EvaluationFinished(self, event: ev.EvaluationFinished) -> None:
        self.last_evaluation = event
        if event.step == 0:
            self.loss_before = event.loss
        self.series.add_evaluation(event)
        self.marks.append(
            Mark(
                event.unix_time, "evaluation", f"held-out loss {number_text(event.loss)} at step {event.step}"
            )
        )
        best = ", the best so far" if event.is_best and event.step else ""
        self._say(f"Held-out loss {number_text(event.loss)} at step {event.step}{best}", unix=event.unix_time)

    def _on_SampleAnswered(self, event: ev.SampleAnswered) -> None:
        self.samples.append(event)
        answer = " ".join(event.answer.split())
        shown = answer if len(answer) <= SHOWN_ANSWER else answer[:SHOWN_ANSWER] + "\u2026"
        self._say(f"Asked \u201c{event.prompt}\u201d at step {event.step}: {shown}")

    def _on_MemorySampled(self, event: ev.MemorySampled) -> None:
        self.memory.append(event.sample)

    def _on_CheckpointSaved(self, event: ev.CheckpointSaved) -> None:
        self.marks.append(Mark(event.unix_time, "checkpoint", f"checkpoint at step {event.step}"))
        self._say(f"Checkpoint at step {event.step} saved ({bytes_text(event.total_bytes)})", unix=event.unix_time)  # fmt: skip

    def _on_Noticed(self, event: ev.Noticed) -> None:
        tone = "warning" if event.level == "warning" else ""
        if event.level == "warning" and event.code.startswith(OUT_OF_MEMORY):
            self.marks.append(Mark(self._newest_unix, "out of memory", event.message))
        self._say(f"{event.message}. {event.hint}" if event.hint else event.message, tone)

    def _on_Paused(self, event: ev.Paused) -> None:
        self.is_pausing = False
        self.state, self.phase_text = "paused", f"Paused at step {event.step}"
        self._say(self.phase_text)

    def _on_Continued(self, event: ev.Continued) -> None:
        self.state, self.phase_text = "running", "Training"
        self._say(f"Going on from step {event.step}")

    def _end(self, event: ev.Event, state: str) -> None:
        self.end, self.state, self.progress, self.is_pausing = event, state, None, False

    def _on_RunFinished(self, event: ev.RunFinished) -> None:
        self._end(event, "finished")
        self.phase_text = "Finished"
        self._say("Finished", "good")

    def _on_RunStopped(self, event: ev.RunStopped) -> None:
        self._end(event, "stopped")
        self.phase_text = "Stopped" + (", can be resumed" if event.is_resumable else "")
        self._say(self.phase_text)

    def _on_RunFailed(self, event: ev.RunFailed) -> None:
        self._end(event, "failed")
        self.phase_text = event.message
        if event.code.startswith(OUT_OF_MEMORY):
            self.marks.append(Mark(self._newest_unix, "out of memory", event.message))
        self._say(f"{event.message}. {event.hint}", "bad")
