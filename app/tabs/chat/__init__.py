"""Chat: the run beside its base and beside others, by hand or by saved prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.tab import DRAFT, RUN, SEVERAL, Tab, TabController, Ways

if TYPE_CHECKING:
    from app.studio import Studio
    from app.widgets.page import Page


def _make(studio: Studio, ways: Ways) -> tuple[Page, TabController]:
    from app.tabs.chat.controller import ChatTabController
    from app.tabs.chat.screen import ChatScreen

    screen = ChatScreen()
    return screen, ChatTabController(studio, screen)


TAB = Tab("chat", "Chat", 60, _make, of=(DRAFT, RUN, SEVERAL), help="try")
