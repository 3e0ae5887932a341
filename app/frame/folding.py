"""What a narrow window folds: the list of runs into signs, the run card into a button that opens it."""

from __future__ import annotations

from PySide6.QtCore import QObject
from PySide6.QtWidgets import QWidget

from app.frame.header import HeaderController
from app.frame.tabs import RunTabs
from app.studio import Studio
from app.widgets.run_card import RunCard
from app.widgets.run_list import RunList

FOLD_BELOW = 1200
"""Pixels of width."""
SETUP = "Setup"
"""The heading beside whose tabs the run card stands."""


class Folding(QObject):
    def __init__(
        self,
        window: QWidget,
        studio: Studio,
        tabs: RunTabs,
        runs: RunList,
        card: RunCard,
        header: HeaderController,
    ) -> None:
        super().__init__(window)
        self._window, self._studio, self._tabs = window, studio, tabs
        self._runs, self._card, self._header = runs, card, header
        self._is_card_open = False
        studio.shown.changed.connect(self.place_card)
        tabs.came.connect(self.place_card)

    def fit(self) -> None:
        """After a change of the window's size."""
        is_narrow = self._window.width() < FOLD_BELOW
        if is_narrow != self._runs.is_narrow:
            self._runs.set_narrow(is_narrow)
            self._is_card_open = False
        self.place_card()

    def toggle_card(self) -> None:
        self._is_card_open = not self._is_card_open
        self.place_card()

    def place_card(self, *_: object) -> None:
        """The card stands beside the setup of a draft; in a narrow window it is opened by a button."""
        has_room = self._window.width() >= FOLD_BELOW
        current = self._tabs.tabs.get(self._tabs.current)
        is_setup = current is not None and current.heading == SETUP
        is_one_draft = self._studio.shown.is_draft and len(self._studio.shown.keys) == 1
        self._card.setVisible(is_one_draft and (is_setup if has_room else self._is_card_open))
        self._header.fit(has_room=has_room)
