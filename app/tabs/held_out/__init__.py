"""Held-out: what the run makes of rows it never saw, and how its answers changed in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.tab import Tab, TabController, Ways

if TYPE_CHECKING:
    from app.studio import Studio
    from app.widgets.page import Page


def _make(studio: Studio, ways: Ways) -> tuple[Page, TabController]:
    from app.tabs.held_out.controller import HeldOutTabController
    from app.tabs.held_out.screen import HeldOutScreen

    screen = HeldOutScreen()
    return screen, HeldOutTabController(studio, screen)


TAB = Tab("held_out", "Held-out", 70, _make, help="try")
