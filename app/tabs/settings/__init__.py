"""Setup, settings: the recipe and every option of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.tab import DRAFT, Tab, TabController, Ways

if TYPE_CHECKING:
    from app.studio import Studio
    from app.widgets.page import Page


def _make(studio: Studio, ways: Ways) -> tuple[Page, TabController]:
    from app.tabs.settings.controller import SettingsController
    from app.tabs.settings.screen import SettingsScreen

    screen = SettingsScreen()
    return screen, SettingsController(studio, screen)


TAB = Tab("settings", "Settings", 30, _make, group="Setup", of=(DRAFT,), help="train")
