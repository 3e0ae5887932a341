"""The charts of a run: loss, learning rate, gradient norm, speed, memory. Imports pyqtgraph, so it is loaded late."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PySide6.QtWidgets import QWidget

from app.presenters.memory_series import memory_stack, paged_stack
from app.presenters.run_fold import RunFold
from app.widgets.charts import Chart, CurveStyle, MemoryChart
from app.widgets.kit import column, row

LOSS = (
    CurveStyle("loss", "Each step", "accent", 1.0, is_faint=True),
    CurveStyle("smooth", "Smoothed", "accent", 2.4),
    CurveStyle("held_out", "Held out", "#E69F00", is_dots=True),
)


class ChartParts:
    """Makes the charts one by one: a plot takes 20 to 40 ms."""

    def __init__(self) -> None:
        self.charts: dict[str, Any] = {}
        self._makers: dict[str, Callable[[], Chart]] = {
            "loss": lambda: Chart("Loss per trained token", LOSS),
            "rate": lambda: Chart(
                "Learning rate", (CurveStyle("rate", "Learning rate", "#56B4E9"),), is_small=True
            ),
            "grad": lambda: Chart(
                "Gradient norm", (CurveStyle("grad", "Gradient norm", "#CC79A7"),), is_small=True
            ),
            "speed": lambda: Chart(
                "Speed", (CurveStyle("speed", "Speed", "#009E73"),), is_small=True, unit="tokens/s"
            ),
            "memory": lambda: MemoryChart("Memory, GiB"),
            "paged": lambda: MemoryChart("Paged optimizer memory, GiB", is_small=True),
            "history": lambda: Chart("Loss", LOSS),
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
        self.memory, self.paged = made["memory"], made["paged"]
        self.paged.hide()
        for chart in (self.rate, self.grad, self.speed):
            chart.follow(self.loss)
        upper = row(self.loss, column(self.rate, self.grad))
        lower = row(self.memory, self.speed)
        for both in (upper, lower):
            both.setStretch(0, 2)
            both.setStretch(1, 1)
        whole = column(upper, lower, self.paged)
        for index, stretch in enumerate((6, 4, 3)):
            whole.setStretch(index, stretch)
        self.setLayout(whole)

    def show_run(self, run: RunFold) -> None:
        for chart, names in (
            (self.loss, ("loss", "smooth", "held_out")),
            (self.rate, ("rate",)),
            (self.grad, ("grad",)),
            (self.speed, ("speed",)),
        ):
            for name in names:
                chart.set_points(name, run.series[name].x, run.series[name].y)

    def show_memory(
        self, samples: Sequence[Mapping[str, Any]], *, is_run: bool, predicted_bytes: int | None
    ) -> None:
        stack = memory_stack(samples, is_run=is_run)
        self.memory.set_title(stack.title)
        self.memory.show_stack(stack.times, stack.parts, stack.titles, predicted_bytes)
        paged = paged_stack(samples) if is_run else None
        self.paged.setVisible(bool(paged and paged.parts))
        if paged is not None and paged.parts:
            self.paged.show_stack(paged.times, paged.parts, paged.titles)

    def restyle(self) -> None:
        for chart in (self.loss, self.rate, self.grad, self.speed, self.memory, self.paged):
            chart.restyle()
