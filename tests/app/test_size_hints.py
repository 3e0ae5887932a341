"""What things measure. A size hint that raises ends the program: Qt asks for it also while it takes a window apart."""

from __future__ import annotations

import pytest
import shiboken6
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QFontMetrics, QImage
from PySide6.QtWidgets import QLabel, QTableWidget, QTableWidgetItem, QWidget
from pytestqt.qtbot import QtBot

from app import theme
from app.tabs.data.screen import TABS
from app.widgets.figures import Flow
from app.widgets.kit import SideBySide
from tests.app.conftest import MakeWindow


@pytest.mark.parametrize("kind", [SideBySide, Flow])
def test_what_has_lost_its_children_still_has_a_size(kind: type[QWidget], qtbot: QtBot) -> None:
    parts = [QLabel("one"), QLabel("two")]
    shown = kind(*parts)
    qtbot.addWidget(shown)
    assert shown.minimumSizeHint().width() > 0
    for part in parts:
        shiboken6.delete(part)
    assert shown.minimumSizeHint().width() == 0


@pytest.mark.parametrize(
    "name", ["model", "data", "settings", "memory", "live", "chat", "held_out", "export", "files"]
)
def test_what_a_page_is_for_can_be_read_whole_on_a_common_screen(make_window: MakeWindow, name: str) -> None:
    window = make_window()
    window.resize(1350, 720)
    window.go_to(name)
    screen = window.tabs.screens[name]
    for part in [tab for tab, _ in TABS] if name == "data" else [""]:
        if part:
            window.tabs.controllers["data"].page.show_tab(part)
        said = screen.sentence
        assert QFontMetrics(said.font()).horizontalAdvance(said.text()) <= said.width(), said.text()


def test_a_heading_stands_over_what_its_column_says(qtbot: QtBot) -> None:
    table = QTableWidget(1, 1)
    qtbot.addWidget(table)
    table.setHorizontalHeaderLabels(["I"])
    table.horizontalHeader().setDefaultAlignment(Qt.AlignmentFlag.AlignLeft)
    table.setItem(0, 0, QTableWidgetItem("I"))
    table.show()
    places = [
        _first_ink(part.grab().toImage(), part.height() // 2)
        for part in (table.horizontalHeader().viewport(), table.viewport())
    ]
    assert abs(places[0] - places[1]) <= 1, places


def _first_ink(picture: QImage, height: int) -> int:
    """The first column, in pixels, of something written in the upper part of `height`."""
    ground = QColor(theme.tokens().panel)
    rows = range(2, min(height, 24))
    return next(x for x in range(2, picture.width()) if any(picture.pixelColor(x, y) != ground for y in rows))
