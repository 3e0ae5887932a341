"""Folds the events of a run into what is shown of it. Mutable, bounded, without Qt.

Where it stands is `run_status`, what happened in words `run_words`, the events on the charts `run_marks`, the large figures
`run_numbers`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from app.presenters.curves import Curves
from app.presenters.run_marks import Mark, mark_of
from app.presenters.run_status import LIVE, RunStatus
from app.presenters.run_words import LogLine, words_of
from app.presenters.words import clock_text
from qlora_engine import events as ev

LOG_LINES = 500
MEMORY_KEPT = 4
"""The newest samples, for figures in words; the charts read the run's trace."""


class RunFold:
    """One run as it was told. `version` counts the changes."""

    def __init__(self) -> None:
        self.status = RunStatus()
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
        self.notices: deque[ev.Noticed] = deque(maxlen=LOG_LINES)
        self.began_unix = self._newest_unix = time.time()
        self.version = 0

    @property
    def state(self) -> str:
        return self.status.state

    @property
    def phase_text(self) -> str:
        return self.status.phase_text

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

    @property
    def seconds_left(self) -> float | None:
        """Of the steps. None while unknown, and after the last one: what is measured and saved then takes a time of its own."""
        step = self.last_step
        return step.eta_seconds if step is not None and step.step < step.total_steps else None

    @property
    def best_held_out(self) -> float | None:
        """The lowest held-out loss of a trained step, else the one before training."""
        losses = self.series["held_out"].y
        known = [loss for loss in losses[1:] if loss == loss] or [loss for loss in losses if loss == loss]
        return min(known, default=None)

    def begin(self) -> None:
        self.status.begin()
        self.version += 1

    def asked_to_pause(self, is_wanted: bool) -> None:
        self.status.asked_to_pause(is_wanted)
        self.version += 1

    def asked_to_stop(self) -> None:
        self.status.asked_to_stop()
        self.version += 1

    def fold(self, event: ev.Event) -> None:
        """Take one event in."""
        self.version += 1
        told_unix = getattr(event, "unix_time", None)
        self._newest_unix = told_unix or self._newest_unix
        self._learn(event)
        self.status.follow(event)
        mark = mark_of(event, self._newest_unix)
        if mark is not None:
            self.marks.append(mark)
        text, tone = words_of(event)
        if text:
            self.log.append(LogLine(clock_text((told_unix or time.time()) - self.began_unix), text, tone))

    def _learn(self, event: ev.Event) -> None:
        """The facts that an event brings."""
        match event:
            case ev.RunStarted():
                self.run_id, self.run_dir, self.began_unix = event.run_id, event.run_dir, event.unix_time
                if event.is_resumed:
                    self._forget_after(event.from_step)
            case ev.PlanMade():
                self.plan = event
            case ev.OptimizerBuilt():
                self.optimizer = event
            case ev.StepFinished():
                self.last_step = event
                self.series.add_step(event)
            case ev.EvaluationFinished():
                self.last_evaluation = event
                self.loss_before = event.loss if event.step == 0 else self.loss_before
                self.series.add_evaluation(event)
            case ev.SampleAnswered():
                self.samples.append(event)
            case ev.Noticed():
                self.notices.append(event)
            case ev.MemorySampled():
                self.memory.append(event.sample)
            case ev.RunFinished() | ev.RunStopped() | ev.RunFailed():
                self.end = event

    def _forget_after(self, step: int) -> None:
        """A resume goes on from its checkpoint: what came after that is trained again."""
        self.series.forget_after(step)
        self.from_step = step
        self.samples = [sample for sample in self.samples if sample.step <= step]
        if self.last_step is not None and self.last_step.step > step:
            self.last_step = None
        if self.last_evaluation is not None and self.last_evaluation.step > step:
            self.last_evaluation = None
