"""What is written can be read on every ground of every theme."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QGuiApplication
from PySide6.QtWidgets import QApplication, QListWidget, QTableWidget
from pytestqt.qtbot import QtBot

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


@pytest.fixture
def in_theme(qapp: QApplication) -> Iterator[Callable[[str], None]]:
    """Lays a theme over the application, and the one of the tests again."""
    yield lambda mode: theme.apply(qapp, mode)
    theme.apply(qapp, "dark")


@pytest.mark.parametrize("kind", [QListWidget, QTableWidget])
@pytest.mark.parametrize("mode", theme.THEMES)
def test_what_is_chosen_in_a_list_or_a_table_is_seen(
    qtbot: QtBot, in_theme: Callable[[str], None], mode: str, kind: type[QListWidget | QTableWidget]
) -> None:
    in_theme(mode)
    view = kind()
    qtbot.addWidget(view)
    if isinstance(view, QListWidget):
        view.addItems(["first", "second"])
    else:
        view.setRowCount(2)
        view.setColumnCount(1)
    view.show()
    view.setCurrentIndex(view.model().index(0, 0))
    picture = view.viewport().grab().toImage()
    places = [view.visualRect(view.model().index(row, 0)) for row in (0, 1)]
    chosen, other = (picture.pixelColor(place.right() - 3, place.center().y()) for place in places)
    assert (chosen, other) == (QColor(theme.tokens().accent_soft), QColor(theme.tokens().panel))
