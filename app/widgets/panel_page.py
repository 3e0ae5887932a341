"""A tab made of several panels, one in sight."""

from __future__ import annotations

from collections.abc import Mapping

from PySide6.QtWidgets import QStackedWidget, QWidget

from app.widgets.kit import Segments
from app.widgets.page import Page


class PanelPage(Page):
    """`panels`: (title, sentence, panel) by name, in their order."""

    def __init__(self, title: str, panels: Mapping[str, tuple[str, str, QWidget]]) -> None:
        super().__init__(title, scrolls=False)
        self._sentences = {name: sentence for name, (_, sentence, _) in panels.items()}
        self._panels = {name: panel for name, (_, _, panel) in panels.items()}
        self.tabs = Segments([(name, words) for name, (words, _, _) in panels.items()])
        self.tabs.chosen.connect(self.show_tab)
        self.buttons.addWidget(self.tabs)
        self.stack = QStackedWidget()
        for panel in self._panels.values():
            self.stack.addWidget(panel)
        self.content.addWidget(self.stack, 1)
        self.show_tab(next(iter(panels)))

    def show_tab(self, name: str) -> None:
        self.tabs.set_value(name)
        self.sentence.setText(self._sentences[name])
        self.stack.setCurrentWidget(self._panels[name])
