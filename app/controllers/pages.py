"""The pages: made one at a time when the window is idle or when first wanted, and shown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QObject, QTimer
from PySide6.QtWidgets import QStackedWidget, QWidget

from app.controllers.chart_import import import_in_turns, import_without_qt
from app.presenters.problems import PAGES
from app.studio import Studio
from qlora_engine.runs.record import RunSummary

if TYPE_CHECKING:
    from app.controllers.export import ExportController
    from app.controllers.train import TrainController
    from app.controllers.tryit import TryController

IDLE_MS = 30
POLISHED_AT_ONCE = 60
STOP = object()


class Pages(QObject):
    """Screens with their controllers, by name. Ends with the stack that shows them."""

    def __init__(
        self,
        studio: Studio,
        stack: QStackedWidget,
        *,
        go_to: Callable[[str], None],
        resume: Callable[[RunSummary], None],
    ) -> None:
        super().__init__(stack)
        self._idle = QTimer(self, singleShot=True)
        self._idle.timeout.connect(self._next_turn)
        self._studio, self._stack, self._go_to, self._resume = studio, stack, go_to, resume
        self.screens: dict[str, Any] = {}
        self.controllers: dict[str, Any] = {}
        self.current = ""
        self._has_charts = False
        self._are_charts_wanted = False
        self._chart_turns: Iterator[None] | None = None
        self._parts: Any = None
        self._unpolished: list[QWidget] = []

    def show(self, page: str, detail: str = "") -> None:
        """Bring a page to the front; `detail` is an option to focus, or `live` on the Train page."""
        screen = self._ensure(page)
        self.current = page
        self._stack.setCurrentWidget(screen)
        if page == "train":
            if detail == "live":
                screen.show_view("live")
            elif detail:
                screen.focus_option(detail)
            self.controllers["train"].paint_run()
        if page == "data" and detail:
            self.controllers["data"].open_option(detail)
        if page in ("train", "runs"):
            self._want_charts()
        if page in ("runs", "try", "export"):
            self._studio.history.refresh()

    def try_run(self, run_dir: str | None) -> None:
        self._go_to("try")
        controller: TryController = self.controllers["try"]
        controller.choose_run(run_dir or "")
        controller.load()

    def export_run(self, run_dir: str | None) -> None:
        self._go_to("export")
        controller: ExportController = self.controllers["export"]
        controller.choose_run(run_dir or "")

    def build_one_more(self) -> None:
        """Make the next page that is missing, then let the event loop breathe; the charts come last."""
        missing = next((page for page in PAGES if page not in self.screens), None)
        if missing is not None:
            screen = self._ensure(missing)
            self._unpolished.extend(screen.findChildren(QWidget))
            self._idle.start(IDLE_MS)
        elif self._unpolished:
            self._polish_some()
            self._idle.start(IDLE_MS)
        else:
            self._want_charts()

    def _next_turn(self) -> None:
        if self._chart_turns is None:
            self.build_one_more()
        elif next(self._chart_turns, STOP) is STOP:
            self._chart_turns = None
            self._idle.start(IDLE_MS)
        else:
            self._idle.start(0)

    def _polish_some(self) -> None:
        """Apply the style sheet to hidden pages ahead of time, so that showing one is quick."""
        some, self._unpolished = self._unpolished[:POLISHED_AT_ONCE], self._unpolished[POLISHED_AT_ONCE:]
        for widget in some:
            with contextlib.suppress(RuntimeError):  # replaced meanwhile
                widget.ensurePolished()

    def restyle(self) -> None:
        """After a change of theme: what paints itself takes the new colours."""
        train = self.screens.get("train")
        if train is not None and train.charts is not None:
            train.charts.restyle()
        runs = self.screens.get("runs")
        if runs is not None and runs.chart is not None:
            runs.chart.restyle()
        if "data" in self.screens:
            self.screens["data"].restyle()
        for name in ("memory", "runs"):
            if name in self.controllers:
                self.controllers[name].paint()
        if "try" in self.controllers:
            self.controllers["try"].restyle()

    def _ensure(self, page: str) -> Any:
        if page not in self.screens:
            self.screens[page], self.controllers[page] = getattr(self, f"_make_{page}")()
            self._stack.addWidget(self.screens[page])
            if self._has_charts:
                self._place_charts()
        return self.screens[page]

    def _want_charts(self) -> None:
        """Importing the chart library takes over half a second: half of it in a pool thread, half in many turns."""
        if not self._are_charts_wanted:
            self._are_charts_wanted = True
            self._studio.background.submit("charts", import_without_qt, lambda _: self._begin_charts())

    def _begin_charts(self) -> None:
        self._chart_turns = self._charts_in_turns()
        self._idle.start(0)

    def _charts_in_turns(self) -> Iterator[None]:
        """Each chart is made in a turn of its own, so that the event loop is never held up for long."""
        yield from import_in_turns()
        from app.screens.train_charts import ChartParts

        self._parts = ChartParts()
        while self._parts.make_next():
            yield
        self._has_charts = True
        self._place_charts()

    def _place_charts(self) -> None:
        train = self.screens.get("train")
        if train is not None and train.charts is None:
            from app.screens.train_charts import TrainCharts

            controller: TrainController = self.controllers["train"]
            controller.set_charts(TrainCharts(self._parts))
        runs = self.screens.get("runs")
        if runs is not None and runs.chart is None:
            self.controllers["runs"].set_chart(self._parts.charts["history"])

    # ------------------------------------------------------------ one maker per page

    def _make_model(self) -> tuple[Any, Any]:
        from app.controllers.model import ModelController
        from app.controllers.quality import QualityController
        from app.screens.model import ModelScreen

        screen = ModelScreen()
        self.controllers["quality"] = QualityController(self._studio, screen.quality)
        return screen, ModelController(self._studio, screen, self._go_to)

    def _make_data(self) -> tuple[Any, Any]:
        from app.controllers.data import DataController
        from app.screens.data import DataScreen

        screen = DataScreen()
        return screen, DataController(self._studio, screen)

    def _make_memory(self) -> tuple[Any, Any]:
        from app.controllers.memory import MemoryController
        from app.screens.memory import MemoryScreen

        screen = MemoryScreen()
        return screen, MemoryController(self._studio, screen)

    def _make_train(self) -> tuple[Any, Any]:
        from app.controllers.train import TrainController
        from app.screens.train import TrainScreen

        screen = TrainScreen()
        return screen, TrainController(self._studio, screen)

    def _make_try(self) -> tuple[Any, Any]:
        from app.controllers.tryit import TryController
        from app.screens.tryit import TryScreen

        screen = TryScreen()
        return screen, TryController(self._studio, screen)

    def _make_export(self) -> tuple[Any, Any]:
        from app.controllers.export import ExportController
        from app.screens.export import ExportScreen

        screen = ExportScreen()
        return screen, ExportController(self._studio, screen)

    def _make_runs(self) -> tuple[Any, Any]:
        from app.controllers.runs import RunsController
        from app.screens.runs import RunsScreen

        screen = RunsScreen()
        controller = RunsController(
            self._studio,
            screen,
            resume=self._resume,
            try_run=lambda summary: self.try_run(str(summary.path)),
            export_run=lambda summary: self.export_run(str(summary.path)),
            reused=lambda: self._go_to("train"),
        )
        return screen, controller
