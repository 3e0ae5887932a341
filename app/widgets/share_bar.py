"""How far something is."""

from __future__ import annotations

from PySide6.QtCore import QEvent
from PySide6.QtWidgets import QProgressBar

THOUSANDTHS = 1000


class ShareBar(QProgressBar):
    """Moves to and fro while the end is unknown.

    Qt's style would go on moving a bar that is at its very beginning by then, and paint the window thirty times a second
    for it: such a bar takes no further step of it.
    """

    def __init__(self, name: str = "Progress") -> None:
        super().__init__()
        self.setTextVisible(False)
        self.setAccessibleName(name)
        self.setRange(0, THOUSANDTHS)

    def show_share(self, share: float | None) -> None:
        """From 0 to 1; None while the end is unknown."""
        self.setRange(0, 0 if share is None else THOUSANDTHS)
        self.setValue(int(THOUSANDTHS * (share or 0)))

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.StyleAnimationUpdate and self.maximum():
            event.ignore()
            return True
        return super().event(event)
