"""Rows as the model sees them: every token, coloured and marked by whether it is trained."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtWidgets import QTextBrowser

from app import theme

STATES = {
    "trained": "trained: the loss is taken here",
    "masked": "seen, not trained",
    "special": "special token, not trained",
    "cut": "cut off: too long",
}


class TokenView(QTextBrowser):
    """Shows rows of {"row", "tokens": [{"text", "id", "state"}], ...}."""

    def __init__(self) -> None:
        super().__init__()
        self.setOpenLinks(False)
        self.setAccessibleName("Rows as the model sees them")

    def show_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.setHtml("".join(_row_html(row) for row in rows))


def legend_html() -> str:
    return "&nbsp;&nbsp; ".join(
        f"{_span('&nbsp;Aa&nbsp;', state)} {words}" for state, words in STATES.items()
    )


def _row_html(row: Mapping[str, Any]) -> str:
    t = theme.tokens()
    cut = f", {row['cut_tokens']} tokens cut" if row.get("cut_tokens") else ""
    head = f'<p style="color:{t.quiet}; margin:10px 0 2px 0">Row {row["row"]}{cut}</p>'
    body = "".join(_span(_text(token["text"]), token["state"]) for token in row["tokens"])
    return f'{head}<p style="margin:0; line-height:150%">{body}</p>'


def _text(raw: str) -> str:
    shown = html.escape(raw).replace("\n", "\u21b5<br/>")
    return shown.replace("  ", "&nbsp;&nbsp;")


def _span(text: str, state: str) -> str:
    t = theme.tokens()
    styles = {
        "trained": f"background-color:{'#1F4D3A' if t.is_dark else '#CDEFDD'}; color:{t.text}; font-weight:600",
        "masked": f"color:{t.text}",
        "special": f"color:{t.quiet}; font-style:italic",
        "cut": f"color:{t.bad}; text-decoration:line-through",
    }
    return f'<span style="{styles.get(state, "")}">{text}</span>'
