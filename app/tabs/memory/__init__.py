"""Setup, memory: what the run will need, with and without double quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.tab import DRAFT, Tab, TabController, Ways

if TYPE_CHECKING:
    from app.studio import Studio
    from app.widgets.page import Page


def _make(studio: Studio, ways: Ways) -> tuple[Page, TabController]:
    from app.tabs.memory.controller import MemoryController
    from app.tabs.memory.screen import MemoryScreen

    screen = MemoryScreen()
    return screen, MemoryController(studio, screen)


TAB = Tab("memory", "Memory", 40, _make, group="Setup", of=(DRAFT,), help="memory")
