"""What every role looks like, as a style sheet made of the tokens of a theme."""

from __future__ import annotations

from app.tokens import CONTRAST, FAMILY, HUGE, LARGE, NORMAL, RADIUS, SMALL, TITLE, Tokens
from qlora_engine import paths

DASHED_WHERE_DISABLED = (
    "QPushButton:disabled, QLineEdit:disabled, QComboBox:disabled { border-style: dashed; }"
)
"""Where every text is bright, no colour tells what cannot be pressed."""


def style_sheet(t: Tokens) -> str:
    """Every role's look."""
    parts = (
        _grounds, _labels, _frames, _tabs, _notices, _buttons, _flat_buttons, _fields, _boxes, _views, _bars,
    )  # fmt: skip
    disabled = DASHED_WHERE_DISABLED if t is CONTRAST else ""
    return "\n".join((*(part(t) for part in parts), disabled))


def _icon(name: str, t: Tokens) -> str:
    """The file of an icon that is drawn for light or dark grounds."""
    return (paths.resources_dir() / "icons" / f"{name}-{'dark' if t.is_dark else 'light'}.svg").as_posix()


def _grounds(t: Tokens) -> str:
    """Windows, pages and tooltips."""
    return f"""
* {{ font-family: "{FAMILY}"; font-size: {NORMAL}px; }}
QWidget {{ color: {t.text}; }}
QMainWindow, QDialog, QWidget[role="page"], QScrollArea, QWidget[role="canvas"] {{ background: {t.background}; }}
QScrollArea {{ border: none; }}
QFrame[role="card"] QScrollArea, QFrame[role="card"] QWidget[role="canvas"] {{ background: transparent; }}
QToolTip {{ background: {t.raised}; color: {t.text}; border: 1px solid {t.line}; padding: 6px; }}"""


def _labels(t: Tokens) -> str:
    """Texts by role and tone."""
    return f"""
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
QLabel[role="mono"] {{ font-family: monospace; font-size: {SMALL}px; color: {t.quiet}; }}"""


def _frames(t: Tokens) -> str:
    """The parts of the window."""
    return f"""
QFrame[role="card"] {{ background: {t.panel}; border: 1px solid {t.line}; border-radius: {RADIUS}px; }}
QFrame[role="card"]:focus {{ border-color: {t.accent}; }}
QFrame[role="over"] {{ background: {t.panel}; border: 1px solid {t.quiet}; }}
QFrame[role="rail"] {{ background: {t.panel}; border: none; border-right: 1px solid {t.line}; }}
QFrame[role="strip"] {{ background: {t.panel}; border: none; border-top: 1px solid {t.line}; }}
QFrame[role="runcard"] {{ background: {t.panel}; border: none; border-left: 1px solid {t.line}; }}
QFrame[role="header"] {{ background: {t.background}; border: none; border-bottom: 1px solid {t.line}; }}
QFrame[role="head"], QFrame[role="tabs"] {{ background: {t.panel}; border: none; }}
QFrame[role="tabs"] {{ border-bottom: 1px solid {t.line}; }}"""


def _tabs(t: Tokens) -> str:
    """The tabs of a run, and those of the help."""
    return f"""
QPushButton[role="tab"] {{ background: transparent; border: none; border-bottom: 2px solid transparent; border-radius: 0; padding: 7px 12px; color: {t.quiet}; }}
QPushButton[role="tab"]:hover {{ color: {t.text}; }}
QPushButton[role="tab"]:focus {{ color: {t.text}; background: {t.raised}; }}
QPushButton[role="tab"]:checked {{ color: {t.text}; border-bottom-color: {t.accent}; font-weight: 600; }}
QTabBar::tab {{ background: transparent; border: none; border-bottom: 2px solid transparent; padding: 7px 12px; color: {t.quiet}; }}
QTabBar::tab:hover {{ color: {t.text}; }}
QTabBar::tab:selected {{ color: {t.text}; border-bottom-color: {t.accent}; }}
QTabBar::tab:selected:focus {{ background: {t.raised}; }}
QPushButton[role="more"] {{ padding: 6px 10px; }}
QPushButton[role="more"]::menu-indicator {{ image: none; width: 0; }}"""


def _notices(t: Tokens) -> str:
    """Lines and notices."""
    return f"""
QFrame[role="edge"] {{ background: transparent; border: 1px solid {t.accent}; border-radius: {RADIUS}px; }}
QFrame[role="line"] {{ background: {t.line}; border: none; max-height: 1px; min-height: 1px; }}
QFrame[role="notice"] {{ background: {t.raised}; border: 1px solid {t.line}; border-left: 3px solid {t.accent}; border-radius: {RADIUS}px; }}
QFrame[role="notice"][tone="warning"] {{ border-left-color: {t.warning}; }}
QFrame[role="notice"][tone="bad"] {{ border-left-color: {t.bad}; }}
QFrame[role="notice"][tone="good"] {{ border-left-color: {t.good}; }}"""


def _buttons(t: Tokens) -> str:
    """Those that act."""
    return f"""
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
QPushButton[role="danger"]:disabled {{ color: {t.quiet}; }}"""


def _flat_buttons(t: Tokens) -> str:
    """Links, places to go, and segments."""
    return f"""
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
QToolButton[role="segment"]:checked:focus {{ border-color: {t.text}; }}"""


def _fields(t: Tokens) -> str:
    """What is typed into and chosen from."""
    return f"""
QLineEdit, QComboBox, QPlainTextEdit, QTextEdit, QSpinBox, QDoubleSpinBox {{ background: {t.background}; placeholder-text-color: {t.quiet}; border: 1px solid {t.line}; border-radius: {RADIUS}px; padding: 5px 8px; selection-background-color: {t.accent}; selection-color: {t.on_accent}; }}
QFrame[role="card"] QLineEdit, QFrame[role="card"] QComboBox {{ background: {t.background}; }}
QLineEdit:focus, QComboBox:focus, QPlainTextEdit:focus, QTextEdit:focus, QSpinBox:focus {{ border-color: {t.accent}; }}
QTextEdit[role="answer"] {{ background: transparent; border-color: transparent; padding: 0; }}
QTextEdit[role="answer"]:focus {{ border-color: {t.accent}; }}
QLineEdit[state="bad"], QComboBox[state="bad"] {{ border-color: {t.bad}; }}
QLineEdit:disabled, QComboBox:disabled {{ color: {t.quiet}; }}
QComboBox::drop-down {{ border: none; width: 24px; }}
QComboBox::down-arrow {{ image: url({_icon("down", t)}); width: 12px; height: 12px; }}
QComboBox QAbstractItemView {{ background: {t.panel}; border: 1px solid {t.line}; selection-background-color: {t.accent_soft}; selection-color: {t.text}; outline: none; }}"""


def _boxes(t: Tokens) -> str:
    """Check boxes and radio buttons."""
    return f"""
QCheckBox, QRadioButton {{ spacing: 8px; background: transparent; }}
QCheckBox::indicator, QRadioButton::indicator, QListView::indicator {{ width: 16px; height: 16px; border: 1px solid {t.quiet}; background: {t.background}; }}
QCheckBox::indicator, QListView::indicator {{ border-radius: 4px; }}
QRadioButton::indicator {{ border-radius: 9px; }}
QCheckBox::indicator:hover, QRadioButton::indicator:hover, QCheckBox::indicator:focus, QRadioButton::indicator:focus {{ border-color: {t.accent}; }}
QCheckBox::indicator:checked, QListView::indicator:checked {{ background: {t.accent}; border-color: {t.accent}; image: url({_icon("check", t)}); }}
QCheckBox::indicator:checked:focus {{ border-color: {t.text}; }}
QRadioButton::indicator:checked {{ background: qradialgradient(cx:0.5, cy:0.5, radius:0.5, fx:0.5, fy:0.5, stop:0 {t.accent}, stop:0.55 {t.accent}, stop:0.6 {t.background}, stop:1 {t.background}); border-color: {t.accent}; }}
QRadioButton::indicator:checked:focus {{ border-color: {t.text}; }}
QCheckBox::indicator:disabled, QRadioButton::indicator:disabled {{ border-color: {t.line}; }}
QCheckBox::indicator:checked:disabled {{ background: {t.quiet}; }}"""


def _views(t: Tokens) -> str:
    """Tables and lists."""
    return f"""
QTableView, QListView, QTreeView {{ background: {t.panel}; border: 1px solid {t.line}; border-radius: {RADIUS}px; gridline-color: {t.line}; selection-background-color: {t.accent_soft}; selection-color: {t.text}; outline: none; alternate-background-color: {t.panel}; }}
QTableView:focus, QListView:focus, QTreeView:focus {{ border-color: {t.accent}; }}
QListView[role="runs"] {{ background: transparent; border: none; }}
QTableView::item, QListView::item {{ padding: 6px 5px; border: none; }}
QTableView::item:selected, QListView::item:selected {{ background: {t.accent_soft}; color: {t.text}; }}
QHeaderView::section {{ background: {t.panel}; color: {t.quiet}; border: none; border-bottom: 1px solid {t.line}; padding: 6px 8px; font-size: {SMALL}px; }}
QTableCornerButton::section {{ background: {t.panel}; border: none; }}"""


def _bars(t: Tokens) -> str:
    """Progress, scroll bars, menus and sliders."""
    return f"""
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
QSlider::handle:horizontal:focus {{ background: {t.accent}; }}"""
