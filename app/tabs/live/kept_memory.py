"""The memory of a run that this window does not train, drawn from the trace in its folder. Imports numpy."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QObject

from app.presenters.memory_series import MemoryFeed, Prediction, kept_trace
from app.presenters.run_fold import RunFold
from app.services.trainer import history_of
from app.studio import Studio
from app.widgets.run_charts import MemoryView
from app.widgets.time_axis import USUAL_SPAN
from qlora_engine.runs.record import RunFolder


class KeptMemory(QObject):
    """`is_shown`: such a run is chosen, and the view is this one's to paint."""

    def __init__(self, studio: Studio, view: MemoryView) -> None:
        super().__init__(view)
        self._studio, self._view = studio, view
        self._read: tuple[Path, int] | None = None
        self.is_shown = False

    def look(self) -> None:
        """The trace of a day takes seconds to read, so it is read only when another one is wanted or it has grown."""
        shown = self._studio.shown
        was_shown, self.is_shown = self.is_shown, shown.path is not None and not shown.is_own
        self._view.pause.setVisible(not self.is_shown)
        if not self.is_shown or shown.path is None:
            self._read = None
            if was_shown:
                self._view.axis.show_span(USUAL_SPAN)
            return
        path, key, folder = RunFolder(shown.path).memory_path, shown.key, shown.path
        wanted = (path, path.stat().st_size if path.exists() else 0)
        if wanted == self._read:
            return
        self._read = wanted
        if not wanted[1]:
            self._view.say("No memory was recorded of this run")
            self._view.show_feed(MemoryFeed(), Prediction(), is_live=False)
            return
        self._studio.background.submit(
            "kept trace",
            lambda: (kept_trace(path), history_of(folder)),
            lambda found: self._draw(key, *found),
        )

    def _draw(self, key: str, feed: MemoryFeed, run: RunFold) -> None:

        if key != self._studio.shown.key:
            return
        plan = run.plan
        predicted = (
            Prediction.of_plan(plan.predicted_peak_bytes, plan.estimate) if plan is not None else Prediction()
        )
        self._view.axis.pause(False)
        self._view.axis.show_span(None)
        self._view.say("")
        self._view.say_paging("")
        self._view.show_feed(feed, predicted, is_live=True, marks=run.marks, zero=feed.first)
