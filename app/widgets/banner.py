"""The one notice over every page; it takes no room while it has nothing to say."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtWidgets import QVBoxLayout, QWidget

from app.theme import GAP_PAGE
from app.widgets.kit import Notice

TOP = 10


class Banner(QWidget):
    def __init__(self) -> None:
        super().__init__()
        self._notice = Notice()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(GAP_PAGE, TOP, GAP_PAGE, 0)
        layout.addWidget(self._notice)
        self.hide()

    def say(
        self, text: str, hint: str = "", tone: str = "accent", *actions: tuple[str, Callable[[], object]]
    ) -> None:
        """Show `text` with what can be done about it; an empty one hides the banner."""
        self._notice.say(text, hint, tone, *actions)
        self.setVisible(bool(text))

    @property
    def text(self) -> str:
        return self._notice.text
