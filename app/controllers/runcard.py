"""Run card, strip and the rail's marks: what is true on every page."""

from __future__ import annotations

from PySide6.QtCore import QObject

from app.controllers.memory import own_capacity, own_state
from app.presenters.problems import PAGES, marks, problems_of
from app.presenters.runcard import run_card
from app.presenters.strip import strip_state
from app.studio import Studio
from app.widgets.rail import Rail
from app.widgets.run_card import RunCard
from app.widgets.start_bar import StartBar
from app.widgets.strip import Strip


class RunCardController(QObject):
    """`can_start` tells whether Start would begin a run now."""

    def __init__(self, studio: Studio, card: RunCard, bar: StartBar, strip: Strip, rail: Rail) -> None:
        super().__init__(card)
        self._studio, self._card, self._bar, self._strip, self._rail = studio, card, bar, strip, rail
        self.can_start = False
        work, trainer = studio.workspace, studio.trainer
        for signal in (
            work.job.changed, work.base.facts_changed, work.data.changed, work.watch.place.changed, work.watch.changed, work.memory.changed,
            trainer.state_changed, trainer.changed,
        ):  # fmt: skip
            signal.connect(self.paint)
        studio.machine.sampled.connect(self.paint_strip)
        studio.machine.sampled.connect(self._measure)
        self._had_sample = False
        self.paint()

    def paint(self) -> None:
        work, run = self._studio.workspace, self._studio.trainer.run
        problems = problems_of(work.job.draft, work.base.facts_error, work.watch.problem)
        memory = own_state(self._studio)
        state = run_card(
            work.job.draft, work.base.facts, work.data.report, memory.short_verdict, problems, run
        )
        self.can_start = state.can_start and not state.is_live
        for view in (self._card, self._bar):
            view.show_state(state)
        attention = marks(problems)
        for page in PAGES:
            is_running = page == "train" and run.is_live
            mark = "running" if is_running else "attention" if page in attention and not run.is_live else ""
            self._rail.set_mark(page, mark)
        self.paint_strip()

    def paint_strip(self) -> None:
        work = self._studio.workspace
        run = self._studio.trainer.run
        predicted = run.plan.predicted_peak_bytes if run.plan else None
        if predicted is None and work.memory.own is not None:
            side = "double_quant" if work.job.config.quantization.double_quant else "single_quant"
            predicted = work.memory.own.bar(side).device_likely
        self._strip.show_state(strip_state(self._studio.machine.latest, run, predicted))

    def _measure(self) -> None:
        capacity = own_capacity(self._studio)
        is_gpu = self._studio.workspace.job.device == "cuda"
        self._studio.workspace.memory.set_usable_gpu_bytes(
            capacity.usable_bytes if capacity and is_gpu else None
        )
        if not self._had_sample:
            self._had_sample = True
            self.paint()
            self._studio.workspace.memory.changed.emit()
