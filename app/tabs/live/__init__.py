"""Live: how a run goes, or went: figures, curves, memory, and what happened in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.tab import RUN, Tab, TabController, Ways

if TYPE_CHECKING:
    from app.studio import Studio
    from app.widgets.page import Page


def _make(studio: Studio, ways: Ways) -> tuple[Page, TabController]:
    from app.tabs.live.controller import LiveController
    from app.tabs.live.screen import LiveScreen

    screen = LiveScreen()
    return screen, LiveController(studio, screen, ways)


TAB = Tab("live", "Live", 50, _make, opens=(RUN,), help="train")
