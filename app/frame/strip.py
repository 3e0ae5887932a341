"""The strip at the bottom: this computer's memory now, and this window's run."""

from __future__ import annotations

from PySide6.QtCore import QObject

from app.controllers.capacity import next_run
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
        run, own = self._studio.trainer.run, next_run(self._studio)
        predicted = run.plan.predicted_peak_bytes if run.plan else None
        if predicted is None and own is not None:
            predicted = own.device_bytes
        self._strip.show_state(strip_state(self._studio.machine.latest, run, predicted))
