"""Held-out: one controller for each panel."""

from __future__ import annotations

from app.studio import Studio
from app.tab import TabController
from app.tabs.held_out.rows import HeldOutController
from app.tabs.held_out.screen import HeldOutScreen
from app.tabs.held_out.timeline import TimelineController


class HeldOutTabController(TabController):
    def __init__(self, studio: Studio, screen: HeldOutScreen) -> None:
        self._screen = screen
        self.held_out = HeldOutController(studio, screen.held_out)
        self.timeline = TimelineController(studio, screen.timeline)
        studio.shown.changed.connect(self._follow)
        studio.trainer.state_changed.connect(self.paint)
        studio.tryout.changed.connect(self.paint)
        self._follow()

    def restyle(self) -> None:
        self._screen.held_out.repaint_rows()

    def paint(self) -> None:
        self.held_out.paint()
        self.timeline.paint()

    def _follow(self) -> None:
        self.held_out.follow()
        self.timeline.follow()
