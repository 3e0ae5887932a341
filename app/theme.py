"""The theme in use: chosen or followed from the desktop, and laid over the whole application.

Widgets name a role (`setProperty("role", "title")`); only `style_sheet` knows what a role looks like.
"""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QFont, QFontDatabase, QGuiApplication, QPalette
from PySide6.QtWidgets import QApplication

from app.style_sheet import style_sheet
from app.tokens import (
    CONTRAST,
    DARK,
    FAMILY,
    GAP,
    GAP_PAGE,
    GAP_WIDE,
    HUGE,
    LARGE,
    LIGHT,
    NORMAL,
    RADIUS,
    SMALL,
    THEMES,
    TITLE,
    Tokens,
)  # fmt: skip
from qlora_engine import paths

__all__ = [
    "CONTRAST", "DARK", "FAMILY", "GAP", "GAP_PAGE", "GAP_WIDE", "HATCHED_PARTS", "HUGE", "LARGE", "LIGHT", "NORMAL", "PART_COLOURS",
    "RADIUS", "SMALL", "THEMES", "TITLE", "Tokens", "apply", "choose", "font", "load_fonts", "part_colour", "style_sheet", "tokens",
    "wants_contrast", "when_desktop_changes",
]  # fmt: skip

# Okabe and Ito's colour-blind-safe set: the same part has the same colour in every picture.
PART_COLOURS = {
    "quantized_weights": "#0072B2",
    "quantization_constants": "#56B4E9",
    "unquantized_weights": "#E69F00",
    "adapters": "#009E73",
    "gradients": "#F0E442",
    "optimizer_resident": "#D55E00",
    "optimizer_pageable": "#D55E00",
    "optimizer": "#D55E00",
    "managed": "#D55E00",
    "activations": "#CC79A7",
    "step_temporary": "#8C939E",
    "allocator_rounding": "#B9BEC6",
    "device_context": "#5D6470",
    "allocated": "#0072B2",
    "in_use": "#0072B2",
    "reserved_free": "#56B4E9",
    "context_and_rest": "#8C939E",
    "driver": "#5D6470",
    "rest": "#8C939E",
    "others": "#5D6470",
    "weights": "#0072B2",
    "on_gpu": "#D55E00",
    "on_cpu": "#E69F00",
}
HATCHED_PARTS = ("optimizer_pageable",)

_current = DARK


def tokens() -> Tokens:
    """The colours in use."""
    return _current


def part_colour(name: str) -> QColor:
    return QColor(PART_COLOURS.get(name, "#8C939E"))


def choose(mode: str) -> Tokens:
    """`mode`: one of `THEMES`, or system (what the desktop says; dark when it says nothing)."""
    if mode in THEMES:
        return THEMES[mode]
    if wants_contrast():
        return CONTRAST
    return LIGHT if QGuiApplication.styleHints().colorScheme() == Qt.ColorScheme.Light else DARK


def wants_contrast() -> bool:
    """The desktop asks for high contrast; False where it does not say, and before Qt 6.10, which cannot tell."""
    hints = QGuiApplication.styleHints()
    if not hasattr(hints, "accessibility"):
        return False
    return hints.accessibility().contrastPreference() == Qt.ContrastPreference.HighContrast


def when_desktop_changes(act: Callable[[], None]) -> None:
    """Call `act` whenever the desktop becomes light, dark, or of high contrast."""
    hints = QGuiApplication.styleHints()
    hints.colorSchemeChanged.connect(act)
    if hasattr(hints, "accessibility"):
        hints.accessibility().contrastPreferenceChanged.connect(act)


def apply(app: QApplication, mode: str) -> None:
    """Style the whole application; widgets that paint themselves are told by a style change event."""
    global _current
    _current = choose(mode)
    app.setStyle("Fusion")
    app.setFont(font())
    app.setPalette(_palette(_current))
    app.setStyleSheet(style_sheet(_current))


def load_fonts() -> None:
    """Make the bundled font known, so that every machine shows the same window."""
    for file in sorted((paths.resources_dir() / "fonts").glob("*.otf")):
        QFontDatabase.addApplicationFont(str(file))


def font(size: int = NORMAL, weight: QFont.Weight = QFont.Weight.Normal) -> QFont:
    """The interface font at `size` pixels, with figures of equal width."""
    found = QFont(FAMILY)
    found.setPixelSize(size)
    found.setWeight(weight)
    found.setFeature(QFont.Tag("tnum"), 1)
    return found


def _palette(t: Tokens) -> QPalette:
    palette = QPalette()
    role = QPalette.ColorRole
    for which, colour in (
        (role.Window, t.background), (role.Base, t.panel), (role.AlternateBase, t.raised), (role.Text, t.text),
        (role.WindowText, t.text), (role.Button, t.panel), (role.ButtonText, t.text), (role.Highlight, t.accent),
        (role.HighlightedText, t.on_accent), (role.ToolTipBase, t.raised), (role.ToolTipText, t.text),
        (role.PlaceholderText, t.quiet), (role.Link, t.accent),
    ):  # fmt: skip
        palette.setColor(which, QColor(colour))
    for which in (role.Text, role.WindowText, role.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, which, QColor(t.quiet))
    return palette
