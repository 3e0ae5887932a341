"""Held-out rows and the timeline of fixed prompts, one panel each."""

from __future__ import annotations

from app.tabs.held_out.rows_panel import HeldOutPanel
from app.tabs.held_out.timeline_panel import TimelinePanel
from app.widgets.panel_page import PanelPage

ROWS, TIMELINE = "rows", "timeline"


class HeldOutScreen(PanelPage):
    """Each panel has signals of its own."""

    def __init__(self) -> None:
        self.held_out, self.timeline = HeldOutPanel(), TimelinePanel()
        super().__init__("Held-out", {
            ROWS: ("Held-out rows", "What the run makes of rows it never saw", self.held_out),
            TIMELINE: ("Timeline", "How the answers to fixed prompts changed in training", self.timeline),
        })  # fmt: skip
