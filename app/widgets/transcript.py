"""A conversation, growing while the model answers."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from PySide6.QtWidgets import QTextBrowser

from app import theme


@dataclass(frozen=True)
class Turn:
    """`speaker` is shown above; `note` (tokens, seconds) below; `is_person` decides the look."""

    speaker: str
    text: str
    is_person: bool
    note: str = ""


class Transcript(QTextBrowser):
    """Plain text of both sides; what the model writes is never taken for markup."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.setOpenLinks(False)
        self.setAccessibleName(name)
        self._shown: tuple[Turn, ...] = ()

    def show_turns(self, turns: Sequence[Turn]) -> None:
        """Repaint; stays at the end when it was at the end."""
        wanted = tuple(turns)
        if wanted == self._shown:
            return
        self._shown = wanted
        bar = self.verticalScrollBar()
        was_at_end = bar.value() >= bar.maximum() - 8
        place = bar.value()
        self.setHtml("".join(_html(turn) for turn in wanted))
        bar.setValue(bar.maximum() if was_at_end else place)

    def restyle(self) -> None:
        """After a change of theme: the text takes the new colours."""
        turns, self._shown = self._shown, ()
        self.show_turns(turns)


def _html(turn: Turn) -> str:
    t = theme.tokens()
    body = html.escape(turn.text).replace("\n", "<br/>") or f'<span style="color:{t.quiet}">\u2026</span>'
    colour = t.accent if turn.is_person else t.quiet
    note = (
        f'<br/><span style="color:{t.quiet}; font-size:11px">{html.escape(turn.note)}</span>'
        if turn.note
        else ""
    )
    return (
        f'<p style="margin:0 0 2px 0; color:{colour}; font-size:12px; font-weight:600">{html.escape(turn.speaker)}</p>'
        f'<p style="margin:0 0 14px 0; line-height:140%">{body}{note}</p>'
    )
