"""Chat and prompt sets, one panel each."""

from __future__ import annotations

from app.tabs.chat.chat_panel import ChatPanel
from app.tabs.chat.sets_panel import SetsPanel
from app.widgets.panel_page import PanelPage

CHAT, SETS = "chat", "sets"


class ChatScreen(PanelPage):
    """Each panel has signals of its own."""

    def __init__(self) -> None:
        self.chat, self.sets = ChatPanel(), SetsPanel()
        super().__init__("Chat", {
            CHAT: ("Chat", "Ask the base model and tuned ones the same question", self.chat),
            SETS: ("Prompt sets", "Ask saved prompts of many runs, and compare the answers", self.sets),
        })  # fmt: skip
