"""Runs page: history, curves, and what to do with a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from app.dialogs import ask_delete
from app.presenters.run_fold import RunFold
from app.presenters.runs import runs_state
from app.screens.runs import RunsScreen
from app.services.trainer import history_of
from app.studio import Studio
from qlora_engine.errors import EngineError
from qlora_engine.runs.record import RunFolder, RunSummary

if TYPE_CHECKING:
    from app.presenters.memory_series import MemoryFeed
    from app.widgets.charts import Chart


class RunsController:
    """`resume`, `try_run` and `export_run` belong to the window: they lead to other pages."""

    def __init__(
        self,
        studio: Studio,
        screen: RunsScreen,
        *,
        resume: Callable[[RunSummary], None],
        try_run: Callable[[RunSummary], None],
        export_run: Callable[[RunSummary], None],
        reused: Callable[[], None],
    ) -> None:
        self._studio, self._screen, self._reused = studio, screen, reused
        self._read: tuple[Path, int] | None = None
        studio.history.changed.connect(self.paint)
        screen.chosen.connect(studio.history.choose)
        screen.refresh_asked.connect(studio.history.refresh)
        screen.resume_asked.connect(lambda: self._with_chosen(resume))
        screen.try_asked.connect(lambda: self._with_chosen(try_run))
        screen.export_asked.connect(lambda: self._with_chosen(export_run))
        screen.reuse_asked.connect(lambda: self._with_chosen(self._reuse))
        screen.delete_asked.connect(lambda: self._with_chosen(self._delete))
        self.paint()

    def set_chart(self, chart: Chart) -> None:
        """The charts come late, and with them numpy."""
        from app.screens.train_charts import MemoryView

        self._screen.set_chart(chart)
        self._screen.set_memory(MemoryView(is_history=True))
        self.paint()

    def paint(self) -> None:
        history = self._studio.history
        state = runs_state(history.summaries, history.chosen)
        self._screen.show_state(state)
        if self._screen.chart is not None and state.chosen is not None:
            summary = history.find(state.chosen.run_id)
            if summary is not None:
                self._studio.background.submit("curves", lambda: history_of(summary.path), self._draw)
                self._look_at_memory(summary)

    def _draw(self, run: RunFold) -> None:
        chart = self._screen.chart
        if chart is not None:
            for name in ("loss", "smooth", "held_out"):
                chart.set_points(name, run.series[name].x, run.series[name].y)

    def _look_at_memory(self, summary: RunSummary) -> None:
        """The trace of a day takes seconds to read, so it is read only when another one is wanted or it has grown."""
        from app.presenters.memory_series import kept_trace

        path = RunFolder(summary.path).memory_path
        wanted = (path, path.stat().st_size if path.exists() else 0)
        if wanted == self._read:
            return
        self._read = wanted
        predicted = summary.predicted_peak_bytes
        if self._screen.memory is not None:
            self._screen.show_memory(wanted[1] > 0)
        self._studio.background.submit(
            "trace of the history",
            lambda: (kept_trace(path), history_of(summary.path)),
            lambda found: self._draw_memory(found[0], found[1], predicted),
        )

    def _draw_memory(self, feed: MemoryFeed, run: RunFold, predicted: int | None) -> None:
        from app.presenters.memory_series import Prediction

        view, estimate = self._screen.memory, run.plan.estimate if run.plan is not None else None
        if view is not None:
            view.axis.pause(False)
            view.axis.show_span(None)
            prediction = Prediction.of_plan(predicted, estimate)
            view.show_feed(feed, prediction, is_live=True, marks=run.marks, zero=feed.first)

    def _with_chosen(self, act: Callable[[RunSummary], None]) -> None:
        history = self._studio.history
        chosen = runs_state(history.summaries, history.chosen).chosen
        summary = history.find(chosen.run_id) if chosen is not None else None
        if summary is not None:
            act(summary)

    def _reuse(self, summary: RunSummary) -> None:
        try:
            self._studio.workspace.job.use_config(RunFolder(summary.path).job())
        except EngineError as error:
            self._screen.notice.say(error.message, error.hint, "bad")
            return
        self._reused()

    def _delete(self, summary: RunSummary) -> None:
        text = f"Delete {summary.run_id} with its checkpoints and adapter?"
        details = "This cannot be undone. Exports made from it stay."
        if ask_delete(self._screen, "Delete this run?", text, details, "Delete run"):
            self._studio.history.delete(summary)
