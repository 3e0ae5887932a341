"""The one visual language: colours, type scale, spacing, and the style sheet made of them.

Widgets name a role (`setProperty("role", "title")`); only this module knows what a role looks like.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QFont, QFontDatabase, QGuiApplication, QPalette
from PySide6.QtWidgets import QApplication

from qlora_engine import paths

FAMILY = "Inter"
SMALL, NORMAL, LARGE, TITLE, HUGE = 12, 13, 15, 20, 28
GAP, GAP_WIDE, GAP_PAGE = 8, 16, 24
RADIUS = 6


@dataclass(frozen=True)
class Tokens:
    """The colours of one theme, as #rrggbb."""

    is_dark: bool
    background: str
    panel: str
    raised: str
    line: str
    text: str
    quiet: str
    accent: str
    on_accent: str
    accent_soft: str
    good: str = "#2EA36A"
    warning: str = "#C98A12"
    bad: str = "#D64545"


DARK = Tokens(
    True, "#14161A", "#1B1E24", "#232831", "#2A2F38", "#E7EAF0", "#9AA4B2", "#5B9DFF", "#0B1220", "#1E2C44",
    good="#3DBB7C", warning="#E0A63A", bad="#F06A6A",
)  # fmt: skip
LIGHT = Tokens(
    False, "#F6F7F9", "#FFFFFF", "#EEF1F5", "#DADFE6", "#1A1D23", "#5A6472", "#1A60CF", "#FFFFFF", "#E3EDFD",
    good="#197446", warning="#8A5B00", bad="#BC3030",
)  # fmt: skip

CONTRAST = Tokens(
    True, "#000000", "#0A0A0A", "#1A1A1A", "#9A9A9A", "#FFFFFF", "#D6D6D6", "#7CC4FF", "#000000", "#0B2A4A",
    good="#5FE39B", warning="#FFC94D", bad="#FF9A9A",
)  # fmt: skip
"""Text at 7:1 and edges of controls at 4.5:1 on every ground."""
DASHED_WHERE_DISABLED = (
    "QPushButton:disabled, QLineEdit:disabled, QComboBox:disabled { border-style: dashed; }"
)
"""Where every text is bright, no colour tells what cannot be pressed."""
THEMES = {"dark": DARK, "light": LIGHT, "contrast": CONTRAST}

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


def style_sheet(t: Tokens) -> str:
    """Every role's look."""
    icons, mode = (paths.resources_dir() / "icons").as_posix(), "dark" if t.is_dark else "light"
    return f"""
* {{ font-family: "{FAMILY}"; font-size: {NORMAL}px; }}
QWidget {{ color: {t.text}; }}
QMainWindow, QDialog, QWidget[role="page"], QScrollArea, QWidget[role="canvas"] {{ background: {t.background}; }}
QScrollArea {{ border: none; }}
QFrame[role="card"] QScrollArea, QFrame[role="card"] QWidget[role="canvas"] {{ background: transparent; }}
QToolTip {{ background: {t.raised}; color: {t.text}; border: 1px solid {t.line}; padding: 6px; }}
QLabel {{ background: transparent; }}
QLabel[role="title"] {{ font-size: {TITLE}px; font-weight: 600; }}
QLabel[role="heading"] {{ font-size: {LARGE}px; font-weight: 600; }}
QLabel[role="quiet"] {{ color: {t.quiet}; }}
QLabel[role="small"] {{ color: {t.quiet}; font-size: {SMALL}px; }}
QLabel[role="strong"] {{ font-weight: 600; }}
QLabel[role="huge"] {{ font-size: {HUGE}px; font-weight: 600; }}
QLabel[role="number"] {{ font-size: {TITLE}px; font-weight: 600; }}
QLabel[tone="good"] {{ color: {t.good}; }}
QLabel[tone="warning"] {{ color: {t.warning}; }}
QLabel[tone="bad"] {{ color: {t.bad}; }}
QLabel[tone="accent"] {{ color: {t.accent}; }}
QLabel[role="mono"] {{ font-family: monospace; font-size: {SMALL}px; color: {t.quiet}; }}
QFrame[role="card"] {{ background: {t.panel}; border: 1px solid {t.line}; border-radius: {RADIUS}px; }}
QFrame[role="rail"] {{ background: {t.panel}; border: none; border-right: 1px solid {t.line}; }}
QFrame[role="strip"] {{ background: {t.panel}; border: none; border-top: 1px solid {t.line}; }}
QFrame[role="runcard"] {{ background: {t.panel}; border: none; border-left: 1px solid {t.line}; }}
QFrame[role="header"] {{ background: {t.background}; border: none; border-bottom: 1px solid {t.line}; }}
QFrame[role="head"], QFrame[role="tabs"] {{ background: {t.panel}; border: none; }}
QFrame[role="tabs"] {{ border-bottom: 1px solid {t.line}; }}
QPushButton[role="tab"] {{ background: transparent; border: none; border-bottom: 2px solid transparent; border-radius: 0; padding: 7px 12px; color: {t.quiet}; }}
QPushButton[role="tab"]:hover {{ color: {t.text}; }}
QPushButton[role="tab"]:focus {{ color: {t.text}; background: {t.raised}; }}
QPushButton[role="tab"]:checked {{ color: {t.text}; border-bottom-color: {t.accent}; font-weight: 600; }}
QPushButton[role="more"] {{ padding: 6px 10px; }}
QPushButton[role="more"]::menu-indicator {{ image: none; width: 0; }}
QFrame[role="line"] {{ background: {t.line}; border: none; max-height: 1px; min-height: 1px; }}
QFrame[role="notice"] {{ background: {t.raised}; border: 1px solid {t.line}; border-left: 3px solid {t.accent}; border-radius: {RADIUS}px; }}
QFrame[role="notice"][tone="warning"] {{ border-left-color: {t.warning}; }}
QFrame[role="notice"][tone="bad"] {{ border-left-color: {t.bad}; }}
QFrame[role="notice"][tone="good"] {{ border-left-color: {t.good}; }}
QPushButton {{ background: {t.raised}; border: 1px solid {t.line}; border-radius: {RADIUS}px; padding: 6px 14px; min-height: 18px; }}
QPushButton:hover {{ border-color: {t.quiet}; }}
QPushButton:focus {{ border-color: {t.accent}; }}
QPushButton:pressed {{ background: {t.accent_soft}; }}
QPushButton:disabled {{ color: {t.quiet}; background: {t.panel}; }}
QPushButton[role="primary"] {{ background: {t.accent}; color: {t.on_accent}; border-color: {t.accent}; font-weight: 600; }}
QPushButton[role="primary"]:hover, QPushButton[role="primary"]:focus {{ border-color: {t.text}; }}
QPushButton[role="primary"]:disabled {{ background: {t.raised}; color: {t.quiet}; border-color: {t.line}; }}
QPushButton[role="loud"] {{ background: {t.accent}; color: {t.on_accent}; border-color: {t.accent}; font-weight: 600; font-size: {LARGE}px; padding: 10px 16px; }}
QPushButton[role="loud"]:hover, QPushButton[role="loud"]:focus {{ border-color: {t.text}; }}
QPushButton[role="loud"]:disabled {{ background: {t.raised}; color: {t.quiet}; border-color: {t.line}; }}
QPushButton[role="danger"] {{ color: {t.bad}; }}
QPushButton[role="danger"]:disabled {{ color: {t.quiet}; }}
QPushButton[role="link"] {{ background: transparent; border: none; color: {t.accent}; padding: 2px 0; text-align: left; }}
QPushButton[role="link"]:hover, QPushButton[role="link"]:focus {{ text-decoration: underline; }}
QPushButton[role="nav"] {{ background: transparent; border: none; border-left: 3px solid transparent; border-radius: 0; padding: 9px 12px; text-align: left; color: {t.quiet}; font-size: {NORMAL}px; }}
QFrame[fold="narrow"] QPushButton[role="nav"] {{ padding: 9px 8px; }}
QPushButton[density="compact"] {{ padding: 3px 12px; min-height: 16px; }}
QPushButton[role="nav"]:hover {{ color: {t.text}; background: {t.raised}; }}
QPushButton[role="nav"]:focus {{ color: {t.text}; border-left-color: {t.quiet}; }}
QPushButton[role="nav"]:checked {{ color: {t.text}; background: {t.accent_soft}; border-left-color: {t.accent}; font-weight: 600; }}
QToolButton[role="segment"] {{ background: {t.panel}; border: 1px solid {t.line}; padding: 5px 14px; color: {t.quiet}; }}
QToolButton[role="segment"]:hover {{ color: {t.text}; }}
QToolButton[role="segment"]:focus {{ border-color: {t.accent}; }}
QToolButton[role="segment"]:checked {{ background: {t.accent_soft}; color: {t.text}; font-weight: 600; border-color: {t.accent}; }}
QLineEdit, QComboBox, QPlainTextEdit, QTextEdit, QSpinBox, QDoubleSpinBox {{ background: {t.background}; placeholder-text-color: {t.quiet}; border: 1px solid {t.line}; border-radius: {RADIUS}px; padding: 5px 8px; selection-background-color: {t.accent}; selection-color: {t.on_accent}; }}
QFrame[role="card"] QLineEdit, QFrame[role="card"] QComboBox {{ background: {t.background}; }}
QLineEdit:focus, QComboBox:focus, QPlainTextEdit:focus, QTextEdit:focus, QSpinBox:focus {{ border-color: {t.accent}; }}
QTextEdit[role="answer"] {{ background: transparent; border: none; padding: 0; }}
QLineEdit[state="bad"], QComboBox[state="bad"] {{ border-color: {t.bad}; }}
QLineEdit:disabled, QComboBox:disabled {{ color: {t.quiet}; }}
QComboBox::drop-down {{ border: none; width: 24px; }}
QComboBox::down-arrow {{ image: url({icons}/down-{mode}.svg); width: 12px; height: 12px; }}
QComboBox QAbstractItemView {{ background: {t.panel}; border: 1px solid {t.line}; selection-background-color: {t.accent_soft}; selection-color: {t.text}; outline: none; }}
QCheckBox, QRadioButton {{ spacing: 8px; background: transparent; }}
QCheckBox::indicator, QRadioButton::indicator, QListView::indicator {{ width: 16px; height: 16px; border: 1px solid {t.quiet}; background: {t.background}; }}
QCheckBox::indicator, QListView::indicator {{ border-radius: 4px; }}
QRadioButton::indicator {{ border-radius: 9px; }}
QCheckBox::indicator:hover, QRadioButton::indicator:hover, QCheckBox::indicator:focus, QRadioButton::indicator:focus {{ border-color: {t.accent}; }}
QCheckBox::indicator:checked, QListView::indicator:checked {{ background: {t.accent}; border-color: {t.accent}; image: url({icons}/check-{mode}.svg); }}
QRadioButton::indicator:checked {{ background: qradialgradient(cx:0.5, cy:0.5, radius:0.5, fx:0.5, fy:0.5, stop:0 {t.accent}, stop:0.55 {t.accent}, stop:0.6 {t.background}, stop:1 {t.background}); border-color: {t.accent}; }}
QCheckBox::indicator:disabled, QRadioButton::indicator:disabled {{ border-color: {t.line}; }}
QCheckBox::indicator:checked:disabled {{ background: {t.quiet}; }}
QTableView, QListView, QTreeView {{ background: {t.panel}; border: 1px solid {t.line}; border-radius: {RADIUS}px; gridline-color: {t.line}; selection-background-color: {t.accent_soft}; selection-color: {t.text}; outline: none; alternate-background-color: {t.panel}; }}
QListView[role="runs"] {{ background: transparent; border: none; }}
QTableView::item, QListView::item {{ padding: 6px 8px; border: none; }}
QHeaderView::section {{ background: {t.panel}; color: {t.quiet}; border: none; border-bottom: 1px solid {t.line}; padding: 6px 8px; font-size: {SMALL}px; }}
QTableCornerButton::section {{ background: {t.panel}; border: none; }}
QProgressBar {{ background: {t.raised}; border: none; border-radius: 3px; min-height: 6px; max-height: 6px; }}
QProgressBar::chunk {{ background: {t.accent}; border-radius: 3px; }}
QScrollBar:vertical {{ background: transparent; width: 10px; margin: 2px; }}
QScrollBar::handle:vertical {{ background: {t.line}; border-radius: 3px; min-height: 28px; }}
QScrollBar::handle:vertical:hover {{ background: {t.quiet}; }}
QScrollBar:horizontal {{ background: transparent; height: 10px; margin: 2px; }}
QScrollBar::handle:horizontal {{ background: {t.line}; border-radius: 3px; min-width: 28px; }}
QScrollBar::add-line, QScrollBar::sub-line, QScrollBar::add-page, QScrollBar::sub-page {{ background: transparent; border: none; width: 0; height: 0; }}
QSplitter::handle {{ background: transparent; }}
QMenu {{ background: {t.panel}; border: 1px solid {t.line}; padding: 4px; }}
QMenu::item {{ padding: 6px 20px; border-radius: 4px; }}
QMenu::item:selected {{ background: {t.accent_soft}; }}
QSlider::groove:horizontal {{ background: {t.raised}; height: 4px; border-radius: 2px; }}
QSlider::sub-page:horizontal {{ background: {t.accent}; height: 4px; border-radius: 2px; }}
QSlider::handle:horizontal {{ background: {t.text}; width: 14px; height: 14px; margin: -5px 0; border-radius: 7px; }}
QSlider::handle:horizontal:focus {{ background: {t.accent}; }}
{DASHED_WHERE_DISABLED if t is CONTRAST else ""}
"""
