"""Live: figures, progress, charts and a log in words; for a run that has ended, how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QPlainTextEdit, QVBoxLayout

from app.presenters.outcome import Outcome
from app.presenters.run_fold import RunFold
from app.presenters.run_numbers import numbers_of
from app.presenters.run_words import LogLine
from app.theme import GAP
from app.widgets.figures import BigNumber, Flow
from app.widgets.kit import Card, Notice, boxed, button, column, label, row
from app.widgets.page import Page
from app.widgets.scrolled import Scrolled
from app.widgets.share_bar import ShareBar

if TYPE_CHECKING:
    from app.widgets.run_charts import TrainCharts


class LiveScreen(Page):
    """Signals: `wish(name)` of the run that goes on, `resume_asked`, `accept_asked`, `log_asked`."""

    wish = Signal(str)
    resume_asked = Signal()
    accept_asked = Signal()
    log_asked = Signal()

    def __init__(self) -> None:
        super().__init__("Live", "", scrolls=False)
        names = ("Step", "Loss", "Held-out loss", "Speed", "Time left", "Peak memory")
        self.numbers = {name: BigNumber(name) for name in names}
        self.figures = Flow(*self.numbers.values())
        self.progress = ShareBar("Progress")
        self.phase = label(role="quiet")
        self.waiting = label("The charts are being made.", "quiet")
        self.charts_place = QVBoxLayout()
        self.charts_place.addWidget(self.waiting)
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setAccessibleName("What happened")
        self.log.setMaximumBlockCount(500)
        self.log.setFixedHeight(66)
        self.evaluate = button("Measure now", lambda: self.wish.emit("evaluate"), tip="Measure the held-out loss at the next step")  # fmt: skip
        self.save = button("Save checkpoint", lambda: self.wish.emit("save"))
        for found in (self.evaluate, self.save):
            self.buttons.addWidget(found)
        self.outcome = Notice()
        top = Card(margin=12)
        top.add(self.figures, self.progress, row(self.phase, None))
        inner = QVBoxLayout()
        inner.setContentsMargins(24, GAP, 24, 0)
        inner.setSpacing(GAP)
        inner.addWidget(self.outcome)
        inner.addWidget(top)
        inner.addLayout(self.charts_place, 1)
        below = QVBoxLayout()
        below.setContentsMargins(24, 0, 24, GAP)
        below.addWidget(self.log)
        self.content.setContentsMargins(0, 0, 0, 0)
        self.content.addLayout(column(Scrolled(boxed(inner)), below, gap=GAP), 1)
        self.charts: TrainCharts | None = None
        self._last_line: LogLine | None = None

    def set_charts(self, charts: TrainCharts) -> None:
        """The charts come when their library is loaded."""
        self.waiting.hide()
        self.charts = charts
        self.charts_place.addWidget(charts, 1)

    def show_outcome(self, outcome: Outcome) -> None:
        """How it ended, and what to do about it."""
        actions = []
        if outcome.accepts:
            actions.append(("Go on all the same", self.accept_asked.emit))
        elif outcome.is_resumable:
            actions.append(("Resume", self.resume_asked.emit))
        if outcome.tone == "bad":
            actions.append(("Read the log", self.log_asked.emit))
        self.outcome.say(outcome.text, outcome.hint, outcome.tone, *actions)

    def render_run(self, run: RunFold, sentence: str, *, is_own: bool) -> None:
        """Numbers, progress and log; the charts are painted by their own call."""
        n = numbers_of(run)
        for name, text, note in (
            ("Step", n.step_text, ""),
            ("Loss", n.loss_text, ""),
            ("Held-out loss", n.held_out_text, n.held_out_note),
            ("Speed", n.speed_text, ""),
            ("Time left", n.eta_text, ""),
            ("Peak memory", n.peak_text, n.peak_note),
        ):
            self.numbers[name].show_value(text, note)
        self.figures.fit()
        is_busy = run.is_live and run.share is None and run.status.progress is None
        share = run.share if run.share is not None else run.status.progress
        is_over = run.state == "finished"
        self.progress.show_share(None if is_busy and not is_over else 1.0 if is_over else share or 0.0)
        self.phase.setText(run.phase_text or "This run has not begun")
        self.sentence.setText(sentence)
        can_ask = is_own and run.state == "running" and run.last_step is not None
        for found in (self.evaluate, self.save):
            found.setEnabled(can_ask)
            found.setVisible(is_own and run.is_live)
        self._show_log(run)

    def _show_log(self, run: RunFold) -> None:
        lines = list(run.log)
        if self._last_line is not None and lines and self._last_line in lines:
            fresh = lines[len(lines) - lines[::-1].index(self._last_line) :]
        else:
            self.log.clear()
            fresh = lines
        for line in fresh:
            self.log.appendPlainText(f"{line.clock}  {line.text}")
        self._last_line = lines[-1] if lines else None
        self.log.setVisible(bool(lines))
