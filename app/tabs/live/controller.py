"""Live: the chosen run as it goes, or as its folder tells that it went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.presenters.outcome import Ending, Outcome, ending_of, outcome_of
from app.studio import Studio
from app.tab import TabController, Ways
from app.tabs.live.screen import LiveScreen

if TYPE_CHECKING:
    from app.tabs.live.memory import LiveMemory

SENTENCES = {
    "draft": "Nothing to see before it is started: memory of this computer, and what is predicted",
    "running": "The run is under way",
    "finished": "The run has finished: try it, or export it",
    "stopped": "The run was stopped",
    "failed": "The run failed",
    "crashed": "The run broke off",
    "elsewhere": "Another program trains this run; it is watched from here",
}


class LiveController(TabController):
    wants_charts = True

    def __init__(self, studio: Studio, screen: LiveScreen, ways: Ways) -> None:
        self._studio, self._screen, self._ways = studio, screen, ways
        self._drawn: tuple[object, ...] = ()
        self._outcome = Outcome()
        self._ending: tuple[str, Ending] = ("", Ending())
        self.memory: LiveMemory | None = None
        shown = studio.shown
        shown.changed.connect(self._changed)
        shown.told.connect(self.paint)
        screen.wish.connect(studio.trainer.ask)
        screen.resume_asked.connect(self._resume)
        screen.accept_asked.connect(lambda: self._resume(self._outcome.accepts))
        screen.log_asked.connect(lambda: ways.go_to("files"))
        self._changed()

    def entered(self, detail: str = "") -> None:
        self.paint()

    def restyle(self) -> None:
        if self._screen.charts is not None:
            self._screen.charts.restyle()

    def take_charts(self, parts: Any) -> None:
        """The charts come late, and with them numpy and what draws the memory."""
        from app.tabs.live.memory import LiveMemory
        from app.widgets.run_charts import TrainCharts

        charts = TrainCharts(parts)
        self._screen.set_charts(charts)
        self.memory = LiveMemory(self._studio, charts.memory_view)
        self._drawn = ()
        self.paint()

    def paint(self) -> None:
        shown = self._studio.shown
        run = shown.fold
        self._screen.render_run(run, self._sentence(), is_own=shown.is_own)
        self._paint_outcome()
        charts = self._screen.charts
        if charts is None or not self._screen.isVisible():
            return
        drawn = (shown.key, id(run), len(run.series["loss"]), len(run.series["held_out"]), run.from_step)
        if drawn != self._drawn or run.state == "starting":
            charts.show_run(run)
        self._drawn = drawn

    def _sentence(self) -> str:
        shown = self._studio.shown
        text = "" if shown.fold.status.is_pausing else SENTENCES.get(shown.state, "")
        return text or shown.fold.phase_text

    def _paint_outcome(self) -> None:
        shown = self._studio.shown
        ending = self._ending[1] if self._ending[0] == shown.key else Ending()
        outcome = outcome_of(shown.state, shown.fold, ending, shown.summary)
        if outcome != self._outcome:
            self._outcome = outcome
            self._screen.show_outcome(outcome)

    def _changed(self) -> None:
        """Another run, or it stands elsewhere: its record is read again."""
        path, key = self._studio.shown.path, self._studio.shown.key
        if path is not None and not self._studio.shown.fold.is_live:
            self._studio.background.submit(
                "ending", lambda: ending_of(path), lambda found: self._learn(key, found)
            )
        self.paint()

    def _learn(self, key: str, ending: Ending) -> None:
        self._ending = (key, ending)
        self._paint_outcome()

    def _resume(self, accept: tuple[str, ...] = ()) -> None:
        path = self._studio.shown.path
        if path is not None:
            self._ways.resume(path, accept)
