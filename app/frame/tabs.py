"""The tabs of the chosen run: made one at a time when the window is idle or when first wanted, and shown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal
from PySide6.QtWidgets import QStackedWidget, QWidget

from app.frame.charts import ChartMaking
from app.studio import Studio
from app.tab import DRAFT, RUN, SEVERAL, Tab, TabController, Ways
from app.tabs import all_tabs
from app.widgets.page import Page
from app.widgets.tab_bar import TabBar

IDLE_MS = 30
POLISHED_AT_ONCE = 60


class RunTabs(QObject):
    """Screens with their controllers, by name. Ends with the stack that shows them. Signals: `came(name)`."""

    came = Signal(str)

    def __init__(self, studio: Studio, stack: QStackedWidget, bar: TabBar, ways: Ways) -> None:
        super().__init__(stack)
        self._studio, self._stack, self._bar, self._ways = studio, stack, bar, ways
        self.tabs = {tab.name: tab for tab in all_tabs()}
        self.screens: dict[str, Page] | dict[str, Any] = {}
        self.controllers: dict[str, TabController] | dict[str, Any] = {}
        self.current = ""
        self._last: dict[str, str] = {}
        self._unpolished: list[QWidget] = []
        self._idle = QTimer(self, singleShot=True, interval=IDLE_MS)
        self._idle.timeout.connect(self.build_one_more)
        self.charts = ChartMaking(self, studio.background, self._place_charts)
        bar.chosen.connect(self.show_heading)
        studio.shown.changed.connect(self.fit)

    @property
    def kind(self) -> str:
        if len(self._studio.shown.keys) > 1:
            return SEVERAL
        return DRAFT if self._studio.shown.is_draft else RUN

    @property
    def first(self) -> Tab:
        """What is seen first of what is chosen."""
        return next(tab for tab in self.tabs.values() if self.kind in tab.opens)

    def show(self, name: str, detail: str = "") -> None:
        """Bring a tab to the front, or what the chosen run has in its stead."""
        tab = self._for_kind(self.tabs[name])
        screen = self._ensure(tab.name)
        is_other, self.current = tab.name != self.current, tab.name
        self._last[f"{tab.heading} {self.kind}"] = tab.name
        self._stack.setCurrentWidget(screen)
        self._bar.show_only({t.heading for t in self.tabs.values() if self.kind in t.of}, tab.heading)
        self.controllers[tab.name].entered(detail)
        if self.controllers[tab.name].wants_charts:
            self.charts.want()
        if is_other:
            self.came.emit(tab.name)

    def show_heading(self, heading: str) -> None:
        """The tab that was last seen under a heading, else its first."""
        known = self._last.get(f"{heading} {self.kind}")
        self.show(known or next(tab.name for tab in self.tabs.values() if tab.heading == heading and self.kind in tab.of))  # fmt: skip

    def show_number(self, number: int) -> None:
        """The tab at a place, from 0, counted over those of a draft."""
        names = [tab.name for tab in self.tabs.values() if DRAFT in tab.of]
        if number < len(names):
            self.show(names[number])

    def fit(self) -> None:
        """After another run was chosen: a tab that it does not have gives way."""
        if self.current and self.kind not in self.tabs[self.current].of:
            self.show_heading(self.first.heading)

    def open_chosen(self, *, is_kept: bool) -> None:
        """After the person chose another run: stay where one is, if that is wanted and can be."""
        if is_kept and self.kind in self.tabs[self.current].of:
            self.show(self.current)
        else:
            self.show_heading(self.first.heading)

    def build_one_more(self) -> None:
        """Make the next tab that is missing, then let the event loop breathe; the charts come last."""
        missing = next((name for name in self.tabs if name not in self.screens), None)
        if missing is not None:
            self._unpolished.extend(self._ensure(missing).findChildren(QWidget))
        elif self._unpolished:
            self._polish_some()
        else:
            self.charts.want()
            return
        self._idle.start()

    def each(self, act: Callable[[TabController], None]) -> None:
        """Do something with every tab that was made."""
        for controller in self.controllers.values():
            act(controller)

    def _for_kind(self, tab: Tab) -> Tab:
        """The tab itself, else the first under its heading that the chosen run has, else what is seen first of it."""
        if self.kind in tab.of:
            return tab
        alike = (t for t in self.tabs.values() if t.heading == tab.heading and self.kind in t.of)
        return next(alike, self.first)

    def _ensure(self, name: str) -> Any:
        if name not in self.screens:
            tab = self.tabs[name]
            screen, self.controllers[name] = tab.make(self._studio, self._ways)
            self.screens[name] = screen
            siblings = [
                (t.name, t.title) for t in self.tabs.values() if t.heading == tab.heading and t.of == tab.of
            ]
            if len(siblings) > 1:
                screen.set_siblings(siblings, name)
                screen.sibling_chosen.connect(self._go_to_sibling)
            self._stack.addWidget(screen)
            if self.charts.parts is not None:
                self.controllers[name].take_charts(self.charts.parts)
        return self.screens[name]

    def _go_to_sibling(self, name: str) -> None:
        self.show(name)
        self.screens[name].focus_siblings(name)

    def _place_charts(self, parts: Any) -> None:
        self.each(lambda controller: controller.take_charts(parts))

    def _polish_some(self) -> None:
        """Apply the style sheet to hidden tabs ahead of time, so that showing one is quick."""
        some, self._unpolished = self._unpolished[:POLISHED_AT_ONCE], self._unpolished[POLISHED_AT_ONCE:]
        for widget in some:
            with contextlib.suppress(RuntimeError):  # replaced meanwhile
                widget.ensurePolished()
