"""The memory charts of a run: before, during and after one of this window, and as a kept trace tells it.

Imports numpy: made when the charts are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTimer

from app.controllers.capacity import next_run
from app.presenters.memory_series import MemoryFeed, Prediction, tail_since
from app.presenters.picture_pace import pace_of
from app.presenters.run_fold import RunFold
from app.presenters.words import FIGURES, bytes_text, capital, gib_text
from app.studio import Studio
from app.tabs.live.kept_memory import KeptMemory
from app.widgets.run_charts import MemoryView
from qlora_engine.memory.optimizer_state import StateBytes
from qlora_engine.monitor import words
from qlora_engine.monitor.residency import why_never_paged

IDLE_MS = 1000
"""Where no GPU is seen, nothing pages, and no run goes on."""
TRACE = "memory.jsonl"


class LiveMemory(QObject):
    """Feeds every sample into one ring, from the machine and from the run's trace; paints only what can be seen."""

    def __init__(self, studio: Studio, view: MemoryView) -> None:
        super().__init__(view)
        self._studio, self._view = studio, view
        self.feed = MemoryFeed()
        self._followed: RunFold | None = None
        self._slowdown = words.Slowdown()
        self._noted_step = -1
        for sample in studio.machine.history:
            self.feed.add_idle(sample)
        studio.machine.sampled.connect(self._take_machine)
        self._timer = QTimer(self, interval=IDLE_MS)
        self._timer.timeout.connect(self.look)
        self._timer.start()
        self.kept = KeptMemory(studio, view)
        studio.shown.changed.connect(self.kept.look)
        self.kept.look()

    def look(self) -> None:
        """Take in what is new, and paint it if it can be seen."""
        run = self._studio.trainer.run
        is_idle = not run.is_live and not self._studio.workspace.job.has_gpu
        wanted_ms = IDLE_MS if is_idle else pace_of(run).memory_ms
        if self._timer.interval() != wanted_ms:
            self._timer.setInterval(wanted_ms)
        self._follow(run)
        count = self.feed.poll()
        if not count and self._followed is run and run.end is not None:
            self.feed.leave()
        self._note_step(run)
        if self.kept.is_shown:
            return
        if self._view.isVisible() and not self._view.visibleRegion().isEmpty():
            self.paint()

    def paint(self) -> None:
        run = self._studio.trainer.run
        predicted = self._prediction(run)
        self._view.show_feed(
            self.feed, predicted, is_live=run.is_live, marks=run.marks,
            zero=run.began_unix if run.run_dir is not None else None,
        )  # fmt: skip
        self._view.say(self._line(run, predicted))
        self._view.say_paging(self._paging(run))

    def _take_machine(self) -> None:
        for sample in self._studio.machine.fresh:
            self.feed.add_idle(sample)

    def _follow(self, run: RunFold) -> None:
        """Once a run has its folder, read its trace; a resumed run's is long, so it is read in the background."""
        if run is self._followed or run.run_dir is None or not run.is_live:
            return
        self._followed, self._slowdown, self._noted_step = run, words.Slowdown(), -1
        path, began = Path(run.run_dir) / TRACE, run.began_unix

        def done(found: Any) -> None:
            if self._followed is run:
                self.feed.follow(*found)

        self._studio.background.submit("trace", lambda: tail_since(path, began), done)

    def _note_step(self, run: RunFold) -> None:
        step = run.last_step
        if step is None or step.step == self._noted_step or self.feed.latest is None:
            return
        self._noted_step = step.step
        self._slowdown.note(step.step_seconds, (self.feed.latest.get("paged") or {}).get("on_cpu_bytes"))

    def _prediction(self, run: RunFold) -> Prediction:
        """Of the run while it goes on, else of the next one."""
        if run.is_live and run.plan is not None:
            return Prediction.of_plan(run.plan.predicted_peak_bytes, run.plan.estimate)
        own = next_run(self._studio)
        return Prediction() if own is None else Prediction.of_next(own.estimate, own.bar, own.besides_bytes)

    @property
    def _is_double(self) -> bool:
        return self._studio.workspace.job.config.quantization.double_quant

    def _line(self, run: RunFold, predicted: Prediction) -> str:
        sample = self.feed.latest
        if sample is None:
            return ""
        reached = run.last_step.peak_memory_bytes if run.is_live and run.last_step else None
        compared = predicted.tensor_bytes if reached is not None else None
        text = words.memory_line(sample, compared, reached, self._slowdown.ratio, FIGURES)
        if not run.is_live and predicted.tensor_bytes is not None:
            text += f"; the next run is predicted to need {gib_text(predicted.device_bytes or predicted.tensor_bytes)}"
        return capital(text)

    def _paging(self, run: RunFold) -> str:
        """The badge of the optimizer that was built; before that the forecast."""
        built, never = run.optimizer if run.is_live else None, why_never_paged()
        if built is not None:
            badge = words.paging_badge(built.class_name, built.paged_bytes, built.why_not_paged, never)
            return badge or f"{built.class_name}: {bytes_text(built.state_bytes)} of state" + (
                "" if built.paged_bytes else ", not paged"
            )
        own, config = self._studio.workspace.memory.own, self._studio.workspace.job.config
        if own is None:
            return ""
        variant = own.estimate.chosen(self._is_double)
        state = StateBytes(variant.parts["optimizer_resident"], variant.parts["optimizer_pageable"], 0)
        room = self._studio.room.own
        usable = room.usable_bytes if room is not None else None
        return words.paging_forecast(
            optimizer=config.training.optimizer, rank=config.lora.rank, state=state,
            device=self._studio.workspace.job.device, peak_bytes=variant.device_likely, usable_bytes=usable,
            why_never=never, figures=FIGURES,
        )  # fmt: skip
