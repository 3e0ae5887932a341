"""Compare: several runs over each other, and only what differs between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.tab import SEVERAL, Tab, TabController, Ways

if TYPE_CHECKING:
    from app.studio import Studio
    from app.widgets.page import Page


def _make(studio: Studio, ways: Ways) -> tuple[Page, TabController]:
    from app.tabs.compare.controller import CompareController
    from app.tabs.compare.screen import CompareScreen

    screen = CompareScreen()
    return screen, CompareController(studio, screen)


TAB = Tab("compare", "Compare", 55, _make, of=(SEVERAL,), opens=(SEVERAL,), help="runs")
