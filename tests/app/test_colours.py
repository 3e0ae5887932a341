"""What is written can be read on every ground of both themes."""

from __future__ import annotations

import pytest
from PySide6.QtGui import QColor

from app import theme


def luminance(colour: str) -> float:
    found = QColor(colour)

    def linear(value: float) -> float:
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(v) for v in (found.redF(), found.greenF(), found.blueF()))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio, 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("tokens", [theme.DARK, theme.LIGHT], ids=["dark", "light"])
@pytest.mark.parametrize("ink", ["text", "quiet", "accent", "good", "warning", "bad"])
def test_text_can_be_read_on_every_ground(tokens: theme.Tokens, ink: str) -> None:
    for ground in ("background", "panel", "raised"):
        assert contrast(getattr(tokens, ink), getattr(tokens, ground)) >= 4.5, ground


@pytest.mark.parametrize("tokens", [theme.DARK, theme.LIGHT], ids=["dark", "light"])
def test_the_loud_button_can_be_read(tokens: theme.Tokens) -> None:
    assert contrast(tokens.on_accent, tokens.accent) >= 4.5
