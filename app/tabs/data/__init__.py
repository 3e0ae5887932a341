"""Setup, data: the rows to learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.tab import DRAFT, Tab, TabController, Ways

if TYPE_CHECKING:
    from app.studio import Studio
    from app.widgets.page import Page


def _make(studio: Studio, ways: Ways) -> tuple[Page, TabController]:
    from app.tabs.data.controller import DataController
    from app.tabs.data.screen import DataScreen

    screen = DataScreen()

    class DataTab(TabController):
        page = DataController(studio, screen)

        def entered(self, detail: str = "") -> None:
            if detail:
                self.page.open_option(detail)

        def restyle(self) -> None:
            screen.restyle()

    return screen, DataTab()


TAB = Tab("data", "Data", 20, _make, group="Setup", of=(DRAFT,), help="data")
