"""The frame of a page: title, one sentence of state, one primary action, and the content below."""

from __future__ import annotations

from PySide6.QtWidgets import QFrame, QHBoxLayout, QVBoxLayout, QWidget

from app.theme import GAP_PAGE, GAP_WIDE
from app.widgets.kit import Elided, Notice, column, label, scrolled


class Page(QWidget):
    """Pages put their content into `content` and their primary button into `buttons`."""

    def __init__(self, title: str, sentence: str = "", *, scrolls: bool = True) -> None:
        super().__init__()
        self.setProperty("role", "page")
        self.title = label(title, "title")
        self.sentence = Elided(sentence, "quiet")
        self.buttons = QHBoxLayout()
        self.buttons.setSpacing(8)
        header = QFrame()
        header.setProperty("role", "header")
        top = QHBoxLayout(header)
        top.setContentsMargins(GAP_PAGE, 14, GAP_PAGE, 14)
        top.setSpacing(GAP_PAGE)
        top.addLayout(column(self.title, self.sentence, gap=2), 1)
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
        outer.addWidget(scrolled(inner) if scrolls else inner, 1)
