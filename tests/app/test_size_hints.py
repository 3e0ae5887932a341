"""What things measure. A size hint that raises ends the program: Qt asks for it also while it takes a window apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import shiboken6
from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QFontMetrics, QImage
from PySide6.QtWidgets import QLabel, QTableWidget, QTableWidgetItem, QTextBrowser, QWidget
from pytestqt.qtbot import QtBot

from app import theme
from app.tabs.compare.presenter import Line
from app.tabs.compare.screen import CompareScreen
from app.tabs.data.screen import TABS
from app.tabs.data.source_panel import SourcePanel
from app.tabs.data.widgets.rows_dialog import RowsTable
from app.theme import GAP
from app.widgets.answers import AnswerColumns, Side
from app.widgets.figures import Flow
from app.widgets.kit import Elided, SideBySide
from app.widgets.reading import show_markdown
from app.widgets.wrapped_table import WrappedTable
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


@pytest.mark.parametrize("kind", [lambda: WrappedTable("a"), RowsTable, lambda: SourcePanel().table])
def test_a_heading_keeps_its_weight_when_a_row_is_chosen(
    qtbot: QtBot, kind: Callable[[], QTableWidget]
) -> None:
    table = kind()
    qtbot.addWidget(table)
    assert not table.horizontalHeader().highlightSections()


def test_runs_that_differ_in_their_ends_alone_are_told_apart(qtbot: QtBot) -> None:
    """Names end with the time; the legend of a comparison and the titles of answers are narrow."""
    runs = [f"starter-starter-20261129-17260{number}" for number in (1, 2)]
    columns, chart = AnswerColumns(), CompareScreen()
    for widget in (columns, chart):
        qtbot.addWidget(widget)
    columns.show_rounds([Side(run, run, "") for run in runs], [])
    shown = list(columns.titles.values())
    chart.show_legend([Line(run, "#ffffff", (), (), False) for run in runs])
    shown += [found for found in chart.findChildren(Elided) if found.text() in runs]
    assert len(shown) == 4
    assert all(found.mode is Qt.TextElideMode.ElideMiddle for found in shown)


def test_paragraphs_of_the_help_stand_apart_and_lines_of_code_do_not(qtbot: QtBot) -> None:
    view = QTextBrowser()
    qtbot.addWidget(view)
    show_markdown(view, "One.\n\nTwo.\n\n    code\n    more\n\n- a\n- b\n\n| x |\n|---|\n| y |\n\nEnd.\n")
    margins, block = {}, view.document().begin()
    while block.isValid():
        margins[block.text()] = block.blockFormat().bottomMargin()
        block = block.next()
    assert [margins[text] for text in ("One.", "Two.", "code", "more", "a", "b")] == [
        GAP,
        GAP,
        0,
        GAP,
        0,
        GAP,
    ]
    assert margins["y"] == 0


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
