"""The frame of a tab: the tabs under its heading, one sentence of state, one primary action, and the content below."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QFrame, QHBoxLayout, QVBoxLayout, QWidget

from app.theme import GAP, GAP_PAGE, GAP_WIDE
from app.widgets.kit import Elided, Notice, Segments
from app.widgets.scrolled import Scrolled


class Page(QWidget):
    """Tabs put their content into `content` and their primary button into `buttons`.

    Signals: `sibling_chosen(name)`: another tab under the same heading."""

    sibling_chosen = Signal(str)

    def __init__(self, title: str, sentence: str = "", *, scrolls: bool = True) -> None:
        super().__init__()
        self.setProperty("role", "page")
        self.setAccessibleName(title)
        self.sentence = Elided(sentence, "quiet")
        self.buttons = QHBoxLayout()
        self.buttons.setSpacing(8)
        header = QFrame()
        header.setProperty("role", "header")
        top = QHBoxLayout(header)
        top.setContentsMargins(GAP_PAGE, GAP, GAP_PAGE, GAP)
        top.setSpacing(GAP_WIDE)
        self.siblings: Segments | None = None
        self._top = top
        top.addWidget(self.sentence, 1)
        top.addLayout(self.buttons)
        self.notice = Notice()
        inner = QWidget()
        self.content = QVBoxLayout(inner)
        self.content.setContentsMargins(GAP_PAGE, GAP_WIDE, GAP_PAGE, GAP_WIDE)
        self.content.setSpacing(GAP_WIDE)
        self.content.addWidget(self.notice)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(0)
        outer.addWidget(header)
        outer.addWidget(Scrolled(inner) if scrolls else inner, 1)

    def set_siblings(self, tabs: Sequence[tuple[str, str]], own: str) -> None:
        """The tabs under one heading, (name, title) each; this is `own`."""
        found = Segments(tabs)
        found.set_value(own)
        found.chosen.connect(lambda name: self._leave_for(name, own))
        self.siblings = found
        self._top.insertWidget(0, found)

    def _leave_for(self, name: str, own: str) -> None:
        if self.siblings is not None and name != own:
            self.siblings.set_value(own)
            self.sibling_chosen.emit(name)

    def focus_siblings(self, own: str) -> None:
        """Where the keyboard was on the tab that one came from."""
        if self.siblings is not None:
            self.siblings.focus_on(own)
