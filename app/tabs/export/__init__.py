"""Export: the run in a form that other programs load, with the proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.tab import Tab, TabController, Ways

if TYPE_CHECKING:
    from app.studio import Studio
    from app.widgets.page import Page


def _make(studio: Studio, ways: Ways) -> tuple[Page, TabController]:
    from app.tabs.export.controller import ExportController
    from app.tabs.export.screen import ExportScreen

    screen = ExportScreen()
    return screen, ExportController(studio, screen)


TAB = Tab("export", "Export", 80, _make, help="export")
