"""The run card in two buttons, for a narrow window: Start, which is always in sight, and the card's headline, which opens it."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QSizePolicy, QWidget

from app.presenters.runcard import RunCardState
from app.widgets.kit import ElidedButton, button, row, set_role


class StartBar(QWidget):
    """Signals: `start_asked`, `card_asked`."""

    start_asked = Signal()
    card_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.card = ElidedButton("This run")
        self.card.clicked.connect(lambda *_: self.card_asked.emit())
        self.start = button("Start training", self.start_asked.emit, "primary")
        for each in (self.card, self.start):
            set_role(each, density="compact")
        self.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Fixed)
        self.setLayout(row(self.card, self.start))
        self.hide()

    def show_state(self, state: RunCardState) -> None:
        self.card.set_text(state.headline)
        self.start.setText(state.start_text)
        self.start.setVisible(not state.is_live)
        self.start.setEnabled(state.can_start)
