"""A job at work: what it does, how far it is, and the button that stops it."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QWidget

from app.widgets.kit import Elided, button, column, row
from app.widgets.share_bar import ShareBar


class Working(QWidget):
    """Hidden while nothing runs. Signals: `stop_asked`."""

    stop_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.phase = Elided(role="quiet")
        self.stop = button("Stop", self.stop_asked.emit)
        self.bar = ShareBar()
        top = row(self.phase, self.stop)
        top.setStretch(0, 1)
        self.setLayout(column(top, self.bar, gap=6))
        self.hide()

    def show_work(self, text: str, share: float | None) -> None:
        """An empty `text` hides it; `share` is None while the end is unknown."""
        self.setVisible(bool(text))
        self.phase.setText(text)
        self.bar.show_share(share)
