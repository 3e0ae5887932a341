"""Files and log: what a run left on the disk, and every word it said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.tab import Tab, TabController, Ways

if TYPE_CHECKING:
    from app.studio import Studio
    from app.widgets.page import Page


def _make(studio: Studio, ways: Ways) -> tuple[Page, TabController]:
    from app.tabs.files.controller import FilesController
    from app.tabs.files.screen import FilesScreen

    screen = FilesScreen()
    return screen, FilesController(studio, screen)


TAB = Tab("files", "Files & log", 90, _make, help="runs")
