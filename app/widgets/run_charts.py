"""The charts of a run: loss, learning rate, gradient norm, speed, memory. Imports pyqtgraph, so it is loaded late."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QButtonGroup, QWidget

from app import theme
from app.presenters import memory_series as memory
from app.presenters.memory_series import MemoryFeed, Prediction
from app.presenters.picture_pace import pace_of
from app.presenters.run_fold import RunFold
from app.presenters.run_marks import Mark
from app.presenters.small_charts import (
    HOST_CHARTS,
    MOVES_CHART,
    PAGES_CHART,
    SmallChart,
    gpu_charts,
    small_reading,
)
from app.presenters.words import capital
from app.widgets.charts import Chart, CurveStyle
from app.widgets.colours import swatch
from app.widgets.kit import Segments, boxed, button, column, label, markup, row, set_tip
from app.widgets.time_axis import USUAL_SPAN, TimeAxis
from app.widgets.time_painting import MARK_COLOURS, MARK_SIGNS
from app.widgets.time_panels import SmallPanel, StackPanel

LOSS = (
    CurveStyle("loss", "Each step", "accent", 1.0, is_faint=True),
    CurveStyle("smooth", "Smoothed", "accent", 2.4),
    CurveStyle("held_out", "Held out", "#E69F00", is_dots=True),
)
SPANS: tuple[tuple[str, str, float | None], ...] = (
    ("minute", "1\u00a0min", 60.0),
    ("ten", "10\u00a0min", USUAL_SPAN),
    ("all", "All", None),
)
MOST_ACROSS, SMALL_WIDTH = 6, 172
"""Small charts in a row at most (all of one GPU), and the pixels that each needs for its title and its figure."""
LEGEND_ROWS = 10
"""The predicted peak, all bands of a run, or before one what the peak is made of."""
SMALL_TURNS = 4
"""Each small chart is drawn anew every so many turns, another quarter of them each time."""
LONG_SECONDS, LONG_TURNS = 3600.0, 5
"""From here on a pixel is several seconds wide: the large charts are not drawn anew at every turn either."""


class ChartParts:
    """Makes the charts one by one: a plot takes 20 to 40 ms."""

    def __init__(self) -> None:
        self.charts: dict[str, Any] = {}
        self._makers: dict[str, Callable[[], Chart]] = {
            "loss": lambda: Chart("Loss", LOSS, unit="nats/token"),
            "rate": lambda: Chart(
                "Learning rate", (CurveStyle("rate", "Learning rate", "#56B4E9"),), is_small=True
            ),
            "grad": lambda: Chart(
                "Gradient norm", (CurveStyle("grad", "Gradient norm", "#CC79A7"),), is_small=True
            ),
            "speed": lambda: Chart(
                "Speed", (CurveStyle("speed", "Speed", "#009E73"),), is_small=True, unit="tokens/s"
            ),
        }

    def make_next(self) -> bool:
        """Make one; False when all are there."""
        name = next((name for name in self._makers if name not in self.charts), None)
        if name is not None:
            self.charts[name] = self._makers[name]()
        return name is not None


class TrainCharts(QWidget):
    """Repainted by `show_run` and `show_memory`, never per event."""

    def __init__(self, parts: ChartParts) -> None:
        super().__init__()
        made = parts.charts
        self.loss, self.rate, self.grad, self.speed = made["loss"], made["rate"], made["grad"], made["speed"]
        for chart in (self.rate, self.grad, self.speed):
            chart.follow(self.loss)
        self.loss.setMinimumHeight(170)
        upper = row(self.loss, column(self.rate, self.grad))
        self.memory_view = MemoryView(beside=self.speed)
        upper.setStretch(0, 2)
        upper.setStretch(1, 1)
        whole = column(upper, self.memory_view)
        whole.setStretch(0, 5)
        whole.setStretch(1, 6)
        self.setLayout(whole)
        self._curves = (
            (self.loss, ("loss", "smooth", "held_out")),
            (self.rate, ("rate",)),
            (self.grad, ("grad",)),
            (self.speed, ("speed",)),
        )
        self._run: RunFold | None = None
        self._drawn: dict[Chart, tuple[float, int]] = {}
        """When each chart was drawn of this run, and after how many of its events."""
        self._later = QTimer(self, singleShot=True)
        self._later.timeout.connect(self._catch_up)

    @property
    def memory(self) -> StackPanel:
        return self.memory_view.memory

    def show_run(self, run: RunFold) -> None:
        """Each chart that is due by the run's pace now, the others once they are."""
        if run is not self._run or not run.is_live:
            self._drawn.clear()
        self._run = run
        pace, now, waits = pace_of(run), time.monotonic(), []
        for chart, names in self._curves:
            at, version = self._drawn.get(chart, (-math.inf, -1))
            due = at + (pace.large_seconds if chart is self.loss else pace.small_seconds)
            if version == run.version:
                continue
            if due > now:
                waits.append(due - now)
                continue
            has_points = any(run.series[name].x for name in names)
            self._drawn[chart] = (now if has_points else -math.inf, run.version)
            for name in names:
                chart.set_points(name, run.series[name].x, run.series[name].y)
            chart.settle()
        if waits:
            self._later.start(math.ceil(1000 * min(waits)))

    def _catch_up(self) -> None:
        if self._run is not None:
            self.show_run(self._run)

    def restyle(self) -> None:
        for chart in (self.loss, self.rate, self.grad, self.speed):
            chart.restyle()
        self.memory_view.restyle()


class MemoryView(QWidget):
    """All charts over time on one axis: memory by part, paged optimizer memory, and small ones in rows.

    `show_feed` draws what the axis' window shows; the tools of the axis are the buttons above.
    """

    def __init__(self, beside: QWidget | None = None) -> None:
        super().__init__()
        self.axis = TimeAxis(self)
        self.spans = Segments([(name, text) for name, text, _ in SPANS])
        self.spans.chosen.connect(self._choose_span)
        self.pause = button(
            "Pause charts", self._toggle_pause, tip="Hold the picture still; sampling goes on"
        )
        self.legend = markup("", "small")
        set_tip(self.legend, "Events of the run")
        self.no_gpu = label("", "small")
        self.memory = StackPanel(self.axis, "Chart: memory by part over time", rows=LEGEND_ROWS)
        self.paged = StackPanel(self.axis, "Chart: paged optimizer memory over time")
        self.pages = SmallPanel(self.axis, PAGES_CHART)
        self.moves = SmallPanel(self.axis, MOVES_CHART)
        self.paging_words = label("", "small", wraps=True)
        self.memory_line = label("", "small", wraps=True)
        self._rows = column()
        self._held: list[QWidget] = []
        self._turn = 0
        self._across = 0
        self.small: dict[str, SmallPanel] = {}
        self._feed: MemoryFeed | None = None
        self._how: tuple[Prediction, bool, Sequence[Mark]] = (Prediction(), False, ())
        self.setLayout(self._laid_out(beside))
        self._set_paged_visible(False)
        self.say("")
        self.say_paging("")
        self.restyle()
        self.axis.changed.connect(self._redraw)
        self._choose_span(USUAL_SPAN)

    def _laid_out(self, beside: QWidget | None) -> Any:
        tools = row(self.spans, self.pause, None, self.no_gpu, gap=8)
        lower = row(self.memory, *([beside] if beside is not None else []))
        lower.setStretch(0, 2)
        if beside is not None:
            lower.setStretch(1, 1)
        beneath = column(self.pages, self.moves)
        self.moves.hide()
        paged = row(self.paged, beneath)
        paged.setStretch(0, 2)
        paged.setStretch(1, 1)
        self._paged_row = boxed(paged)
        whole = column(
            tools, self.legend, lower, self.memory_line, self._paged_row, self.paging_words, self._rows
        )
        for index, stretch in enumerate((0, 0, 3, 0, 2, 0, 1)):
            whole.setStretch(index, stretch)
        return whole

    def show_feed(
        self,
        feed: MemoryFeed,
        predicted: Prediction,
        *,
        is_live: bool,
        marks: Sequence[Mark] = (),
        zero: float | None = None,
    ) -> None:
        """`zero`: the Unix time that the labels count from, the first sample's if it is None."""
        is_new = feed is not self._feed
        self._feed, self._how = feed, (predicted, is_live, marks)
        if feed.ring is not None:
            self.axis.know(feed.first, feed.newest)
            self.axis.zero = feed.first if zero is None else zero
        self._turn += 1
        self._draw(is_everything=is_new)

    def say_paging(self, text: str) -> None:
        """What there is to say about paging where there is nothing to draw."""
        self.paging_words.setText(capital(text))
        self.paging_words.setVisible(bool(text) and self._paged_row.isHidden())

    def say(self, text: str) -> None:
        """The line of plain words under the memory chart."""
        self.memory_line.setText(text)
        self.memory_line.setVisible(bool(text))

    def restyle(self) -> None:
        t = theme.tokens()
        signs = ((getattr(t, MARK_COLOURS[kind]), sign, kind) for kind, sign in MARK_SIGNS.items())
        self.legend.setText("&nbsp;&nbsp; ".join(swatch(*each) for each in signs))
        self.memory.restyle()
        self.paged.restyle()
        for panel in (self.pages, self.moves, *self.small.values()):
            panel.restyle()

    def _redraw(self) -> None:
        self._draw(is_everything=True)

    def _draw(self, *, is_everything: bool) -> None:
        self.pause.setText("Pause charts" if self.axis.is_following else "Follow again")
        _choose(self.spans, next((name for name, _, span in SPANS if span == self.axis.span), ""))
        feed = self._feed
        if feed is None:
            return
        start, end = self.axis.window
        is_long = end - start > LONG_SECONDS
        are_stacks_due = is_everything or not is_long or self._turn % LONG_TURNS == 0
        if are_stacks_due:
            self._show_stacks(feed)
        if is_everything or not (is_long and are_stacks_due):
            self._show_small(feed, is_everything)

    def _show_stacks(self, feed: MemoryFeed) -> None:
        predicted, is_live, marks = self._how
        window = self.axis.window
        self.memory.show_picture(
            memory.memory_picture(feed, window, self.memory.chart.buckets, predicted, is_live=is_live), marks
        )
        paged = memory.paged_picture(feed, window, self.paged.chart.buckets)
        self._set_paged_visible(bool(paged.bands))
        if paged.bands:
            self.paged.show_picture(paged, marks)
            self.pages.show_lines(feed, small_reading(PAGES_CHART, feed.latest))
            is_counted = MOVES_CHART.lines[0].series in feed.ring.names if feed.ring is not None else False
            self.moves.setVisible(is_counted)
            if is_counted:
                self.moves.show_lines(feed, small_reading(MOVES_CHART, feed.latest))

    def _show_small(self, feed: MemoryFeed, is_everything: bool) -> None:
        latest = feed.latest
        gpus = (latest.get("gpus") or ()) if latest is not None else ()
        problem = (latest or {}).get("gpu_problem") if not gpus else None
        self.no_gpu.setText("GPU n/a" if problem else "")
        set_tip(self.no_gpu, str(problem or ""))
        wanted = [gpu_charts(gpu, has_memory=len(gpus) > 1) for gpu in gpus]
        is_everything |= self._ensure([*wanted, HOST_CHARTS])
        for place, panel in enumerate(self.small.values()):
            if not is_everything and (place - self._turn) % SMALL_TURNS:
                continue
            panel.show_lines(feed, small_reading(panel.spec, latest))

    def _ensure(self, rows: Sequence[Sequence[SmallChart]]) -> bool:
        """A row for each GPU and one for the host, made when first seen, and kept when a GPU is lost. True if any is
        new."""
        missing = [chart for charts in rows for chart in charts if chart.name not in self.small]
        across = min(MOST_ACROSS, max(1, self.width() // SMALL_WIDTH))
        if not missing and across == self._across:
            return False
        self._across = across
        for chart in missing:
            self.small[chart.name] = SmallPanel(self.axis, chart)
        names = [[chart.name for chart in charts] for charts in rows]
        lost = [name for name in self.small if not any(name in line for line in names)]
        old, self._held = self._held, []
        for line in _chunked([*([lost] if lost else []), *names], self._across):
            held = boxed(row(*(self.small[name] for name in line)))
            self._rows.addWidget(held)
            self._held.append(held)
        for each in old:
            self._rows.removeWidget(each)
            each.deleteLater()
        return True

    def _set_paged_visible(self, is_visible: bool) -> None:
        self._paged_row.setVisible(is_visible)
        if is_visible:
            self.paging_words.hide()

    def _choose_span(self, name: str | float | None) -> None:
        span = next((s for n, _, s in SPANS if n == name), None) if isinstance(name, str) else name
        self.axis.show_span(span)

    def _toggle_pause(self) -> None:
        self.axis.pause(self.axis.is_following)


def _choose(spans: Segments, name: str) -> None:
    """Mark a choice, or none when the window of time is one of the person's own."""
    if name:
        spans.set_value(name)
        return
    group = spans.findChild(QButtonGroup)
    assert group is not None
    group.setExclusive(False)
    for each in group.buttons():
        each.setChecked(False)
    group.setExclusive(True)


def _chunked(lines: Sequence[Sequence[str]], most: int) -> list[Sequence[str]]:
    """Each line in as few rows as it needs, all about equally long."""
    found: list[Sequence[str]] = []
    for line in lines:
        size = -(-len(line) // -(-len(line) // most))
        found += [line[at : at + size] for at in range(0, len(line), size)]
    return found
