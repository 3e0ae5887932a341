"""What is written can be read on every ground of every theme."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication

from app import theme
from tests.app.contrast import contrast


@pytest.mark.parametrize("tokens", theme.THEMES.values(), ids=theme.THEMES)
@pytest.mark.parametrize("ink", ["text", "quiet", "accent", "good", "warning", "bad"])
def test_text_can_be_read_on_every_ground(tokens: theme.Tokens, ink: str) -> None:
    for ground in ("background", "panel", "raised"):
        assert contrast(getattr(tokens, ink), getattr(tokens, ground)) >= 4.5, ground


@pytest.mark.parametrize("tokens", theme.THEMES.values(), ids=theme.THEMES)
def test_the_loud_button_can_be_read(tokens: theme.Tokens) -> None:
    assert contrast(tokens.on_accent, tokens.accent) >= 4.5


@pytest.mark.parametrize("ground", ["background", "panel", "raised", "accent_soft"])
def test_high_contrast_is_high_for_text_and_for_edges(ground: str) -> None:
    under = getattr(theme.CONTRAST, ground)
    for ink in ("text", "quiet", "accent", "good", "warning", "bad"):
        assert contrast(getattr(theme.CONTRAST, ink), under) >= 7.0, ink
    assert contrast(theme.CONTRAST.line, under) >= 4.5
    assert contrast(theme.CONTRAST.on_accent, theme.CONTRAST.accent) >= 7.0


@pytest.mark.parametrize(
    ("preference", "scheme", "expected"),
    [
        ("HighContrast", "Light", theme.CONTRAST),
        ("NoPreference", "Light", theme.LIGHT),
        ("NoPreference", "Unknown", theme.DARK),
    ],
)
def test_the_desktop_is_followed(
    monkeypatch: pytest.MonkeyPatch, preference: str, scheme: str, expected: theme.Tokens
) -> None:
    says = SimpleNamespace(contrastPreference=lambda: Qt.ContrastPreference[preference])
    hints = SimpleNamespace(accessibility=lambda: says, colorScheme=lambda: Qt.ColorScheme[scheme])
    monkeypatch.setattr(QGuiApplication, "styleHints", lambda: hints)
    assert theme.choose("system") == expected
    assert theme.choose("dark") == theme.DARK, "what is chosen by hand stays"
