"""The strip at the bottom: this computer's memory now, and this window's run."""

from __future__ import annotations

from PySide6.QtCore import QObject

from app.presenters.strip import strip_state
from app.studio import Studio
from app.widgets.strip import Strip


class StripController(QObject):
    def __init__(self, studio: Studio, strip: Strip) -> None:
        super().__init__(strip)
        self._studio, self._strip = studio, strip
        for signal in (
            studio.machine.sampled, studio.trainer.changed, studio.trainer.state_changed, studio.workspace.memory.changed,
        ):  # fmt: skip
            signal.connect(self.paint)
        self.paint()

    def paint(self) -> None:
        work, run = self._studio.workspace, self._studio.trainer.run
        predicted = run.plan.predicted_peak_bytes if run.plan else None
        if predicted is None and work.memory.own is not None:
            side = "double_quant" if work.job.config.quantization.double_quant else "single_quant"
            predicted = work.memory.own.bar(side).device_likely
        self._strip.show_state(strip_state(self._studio.machine.latest, run, predicted))
