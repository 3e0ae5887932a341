"""Try it page: chat, prompt sets, held-out rows and the timeline of fixed prompts, one tab each."""

from __future__ import annotations

from PySide6.QtWidgets import QStackedWidget

from app.screens.try_chat import ChatPanel
from app.screens.try_held_out import HeldOutPanel
from app.screens.try_sets import SetsPanel
from app.screens.try_timeline import TimelinePanel
from app.widgets.kit import Segments
from app.widgets.page import Page

CHAT, SETS, HELD_OUT, TIMELINE = "chat", "sets", "held_out", "timeline"
TABS = ((CHAT, "Chat"), (SETS, "Prompt sets"), (HELD_OUT, "Held-out"), (TIMELINE, "Timeline"))
SENTENCES = {
    CHAT: "Ask the base model and tuned ones the same question",
    SETS: "Ask saved prompts of many runs, and compare the answers",
    HELD_OUT: "What a run expects of rows it never saw",
    TIMELINE: "How the answers to fixed prompts changed in training",
}


class TryScreen(Page):
    """Four panels; each has signals of its own."""

    def __init__(self) -> None:
        super().__init__("Try it", SENTENCES[CHAT], scrolls=False)
        self.tabs = Segments(TABS)
        self.tabs.chosen.connect(self.show_tab)
        self.buttons.addWidget(self.tabs)
        self.chat, self.sets, self.held_out, self.timeline = (
            ChatPanel(),
            SetsPanel(),
            HeldOutPanel(),
            TimelinePanel(),
        )
        self.stack = QStackedWidget()
        for panel in (self.chat, self.sets, self.held_out, self.timeline):
            self.stack.addWidget(panel)
        self.content.addWidget(self.stack, 1)
        self.show_tab(CHAT)

    def show_tab(self, name: str) -> None:
        self.tabs.set_value(name)
        self.sentence.setText(SENTENCES[name])
        self.stack.setCurrentIndex([tab for tab, _ in TABS].index(name))
