"""Who answers, side by side: one column each, all equally wide and all in sight; they scroll together."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PySide6.QtCore import Qt
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QTextBrowser

from app import theme
from app.widgets.kit import Card, Elided, boxed, emptied, line, set_tip

PADDING = 8
"""Pixels around the text of a cell."""
MARGIN = 4


@dataclass(frozen=True)
class Side:
    """One column."""

    name: str
    title: str
    detail: str


@dataclass(frozen=True)
class Answer:
    """`note`: tokens and seconds; `calls`: of tools, in words."""

    text: str
    note: str = ""
    calls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Round:
    """One question, and the answers by side."""

    question: str
    answers: Mapping[str, Answer]


class AnswerColumns(Card):
    """A line of titles, and below it one text for all columns: each question over its answers."""

    def __init__(self) -> None:
        super().__init__(margin=0)
        self.titles: dict[str, Elided] = {}
        self._head = QHBoxLayout()
        self._head.setSpacing(0)
        self.text = QTextBrowser()
        self.text.setAccessibleName("Answers")
        self.text.setOpenLinks(False)
        self.text.setFrameShape(QFrame.Shape.NoFrame)
        self.text.setProperty("role", "answer")
        self.text.setMinimumHeight(96)
        self.text.document().setDocumentMargin(MARGIN)
        self.text.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.text.verticalScrollBar().rangeChanged.connect(lambda *_: self._align())
        self.body.setSpacing(0)
        self.add(boxed(self._head), line(), self.text)
        self._sides: tuple[Side, ...] = ()
        self._rounds: tuple[Round, ...] = ()

    def show_rounds(self, sides: Sequence[Side], rounds: Sequence[Round]) -> None:
        """Repaint; stays at the end when it was at the end."""
        wanted, told = tuple(sides), tuple(rounds)
        if wanted != self._sides:
            self._sides = wanted
            self._show_titles()
        elif told == self._rounds:
            return
        self._rounds = told
        bar = self.text.verticalScrollBar()
        place, was_at_end = bar.value(), bar.value() >= bar.maximum() - 8
        self.text.setHtml(_html(wanted, told))
        bar.setValue(bar.maximum() if was_at_end else place)

    def restyle(self) -> None:
        """After a change of theme: the text takes the new colours."""
        self.text.setHtml(_html(self._sides, self._rounds))

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._align()

    def _align(self) -> None:
        """The titles stand over their columns, whether there is a scroll bar or not."""
        bar = max(0, self.text.width() - self.text.viewport().width())
        self._head.setContentsMargins(MARGIN, 8, MARGIN + bar, 8)

    def _show_titles(self) -> None:
        emptied(self._head)
        self.titles = {}
        for side in self._sides:
            title = Elided(side.title, "strong", Qt.TextElideMode.ElideMiddle)
            title.setContentsMargins(PADDING, 0, PADDING, 0)
            set_tip(title, f"{side.title}: {side.detail}" if side.detail else side.title)
            self.titles[side.name] = title
            self._head.addWidget(title, 1)
        self._align()


def _html(sides: Sequence[Side], rounds: Sequence[Round]) -> str:
    """A table of equal columns: Qt breaks what is too long for one anywhere."""
    if not sides:
        return ""
    rows = "".join(_row(sides, found) for found in rounds)
    return f'<table width="100%" cellspacing="0" cellpadding="{PADDING}">{rows}</table>'


def _row(sides: Sequence[Side], found: Round) -> str:
    t = theme.tokens()
    width = 100 / len(sides)
    asked = f'<tr><td colspan="{len(sides)}" style="color:{t.accent}; font-weight:600">{_text(found.question)}</td></tr>'
    cells = (f'<td width="{width:.4f}%">{_cell(found.answers.get(side.name))}</td>' for side in sides)
    return f"{asked}<tr>{''.join(cells)}</tr>"


def _cell(answer: Answer | None) -> str:
    t = theme.tokens()
    if answer is None:
        return f'<span style="color:{t.quiet}">\u2013</span>'
    calls = [f'<span style="color:{t.quiet}">calls</span> <b>{_text(call)}</b>' for call in answer.calls]
    lines = [_text(answer.text), *calls] if answer.text else calls
    body = "<br/>".join(lines) or f'<span style="color:{t.quiet}">\u2026</span>'
    note = f'<br/><span style="color:{t.quiet}; font-size:12px">{html.escape(answer.note)}</span>'
    return body + (note if answer.note else "")


def _text(text: str) -> str:
    """What a model writes is never taken for markup; its spaces and lines are kept."""
    return html.escape(text).replace("  ", "&nbsp; ").replace("\n", "<br/>")
