"""Setup, model: the base that is quantized, and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.tab import DRAFT, Tab, TabController, Ways

if TYPE_CHECKING:
    from app.studio import Studio
    from app.widgets.page import Page


def _make(studio: Studio, ways: Ways) -> tuple[Page, TabController]:
    from app.tabs.model.controller import ModelController
    from app.tabs.model.screen import ModelScreen

    screen = ModelScreen()
    return screen, ModelController(studio, screen, ways)


TAB = Tab("model", "Model", 10, _make, group="Setup", of=(DRAFT,), opens=(DRAFT,), help="model")
