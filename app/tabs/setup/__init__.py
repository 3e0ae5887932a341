"""Setup of a run that was started: to read, and to begin another from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.tab import RUN, Tab, TabController, Ways

if TYPE_CHECKING:
    from app.studio import Studio
    from app.widgets.page import Page


def _make(studio: Studio, ways: Ways) -> tuple[Page, TabController]:
    from app.tabs.setup.controller import SetupController
    from app.tabs.setup.screen import SetupScreen

    screen = SetupScreen()
    return screen, SetupController(studio, screen, ways)


TAB = Tab("setup", "Setup", 5, _make, of=(RUN,), help="train")
