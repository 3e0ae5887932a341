"""Colours made fit for where they are painted: softened, legible, as a sign before a text."""

from __future__ import annotations

from PySide6.QtGui import QColor

from app import theme


def blended(colour: QColor, share: float = 0.55) -> QColor:
    """The colour, softened towards the panel it is painted on, and opaque."""
    under = QColor(theme.tokens().panel)
    pairs = ((colour.red(), under.red()), (colour.green(), under.green()), (colour.blue(), under.blue()))
    return QColor(*(int(share * a + (1 - share) * b) for a, b in pairs))


def swatch(colour: str, sign: str, text: str) -> str:
    """A coloured sign before a text, as rich text."""
    return f'<span style="color: {colour}">{sign}</span>&nbsp;{text}'


def legible(colour: QColor) -> QColor:
    """The colour, lighter on a dark panel and darker on a light one where text needs it."""
    if theme.tokens().is_dark:
        return colour.lighter(150) if colour.lightnessF() < 0.45 else colour
    return colour.darker(150) if colour.lightnessF() > 0.35 else colour
