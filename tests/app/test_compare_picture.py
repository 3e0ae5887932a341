"""The chart of a comparison: read by keys, and as a file, where a drawing has everything at the place that a picture has."""

from __future__ import annotations

from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QImage, QPainter
from PySide6.QtSvg import QSvgRenderer
from PySide6.QtTest import QTest
from pytestqt.qtbot import QtBot

from app.widgets import compare_picture
from app.widgets.compare_chart import CompareChart


def drawn(path: Path) -> QImage:
    """In pixels of the screen."""
    if path.suffix == ".png":
        found = QImage(str(path))
        return found.scaled(found.size() / compare_picture.SHARPNESS)
    renderer = QSvgRenderer(str(path))
    found = QImage(renderer.viewBox().size(), QImage.Format.Format_RGB32)
    painter = QPainter(found)
    renderer.render(painter)
    painter.end()
    return found


def labelled_rows(picture: QImage) -> tuple[int, int]:
    """The first and the last row of pixels with a label of the upright axis."""
    left, top = compare_picture.EDGE, compare_picture.EDGE + compare_picture.LINE
    empty = picture.pixelColor(2, 2).lightness()
    rows = [
        y
        for y in range(top, picture.height() - 3 * top)
        if any(abs(picture.pixelColor(x, y).lightness() - empty) > 40 for x in range(left, left + 50))
    ]
    return rows[0], rows[-1]


@pytest.fixture
def chart(qtbot: QtBot) -> CompareChart:
    found = CompareChart()
    qtbot.addWidget(found)
    found.resize(640, 420)
    found.show()
    found.set_scale("tokens", "Training loss", "nats/token", is_log=False)
    found.show_lines([("one", "#56B4E9", [1, 2, 3], [3.0, 2.0, 1.0], False), ("two", "#E69F00", [1, 3], [2.0, 1.5], True)], None)  # fmt: skip
    qtbot.waitUntil(lambda: along(found)[1] > 2.9, timeout=5000)
    return found


def along(chart: CompareChart) -> list[float]:
    """What is seen of the axis below."""
    return list(chart.plot.getPlotItem().vb.viewRange()[0])


def test_keys_move_the_crosshair_and_zoom_around_it(qtbot: QtBot, chart: CompareChart) -> None:
    chart.setFocus()
    before, told = along(chart), []
    chart.read.connect(told.append)
    QTest.keyClick(chart, Qt.Key.Key_Right)
    assert told[-1] == ("2.000\u00a0nats/token at 2 tokens", "2.000\u00a0nats/token at 1 tokens")
    QTest.keyClick(chart, Qt.Key.Key_Plus)
    assert along(chart)[1] - along(chart)[0] == pytest.approx(0.8 * (before[1] - before[0]))
    QTest.keyClick(chart, Qt.Key.Key_Home)
    qtbot.waitUntil(lambda: along(chart) == pytest.approx(before), timeout=5000)


def test_lines_are_thin_while_they_are_moved_so_that_many_frames_a_second_are_drawn(
    qtbot: QtBot, chart: CompareChart
) -> None:
    def widths() -> set[float]:
        return {item.opts["pen"].widthF() for item in chart.lines}

    at_rest = widths()
    chart.plot.getPlotItem().vb.sigRangeChangedManually.emit([True, False])
    assert widths() == {1.0}
    qtbot.waitUntil(lambda: widths() == at_rest, timeout=5000)
    assert min(at_rest) > 1.0


def test_a_drawing_has_its_labels_where_the_picture_has_them(chart: CompareChart, tmp_path: Path) -> None:
    for name in ("c.png", "c.svg"):
        chart.save(tmp_path / name, is_drawing=name.endswith("svg"))
    picture, drawing = drawn(tmp_path / "c.png"), drawn(tmp_path / "c.svg")
    assert picture.size() == drawing.size()
    assert labelled_rows(drawing) == pytest.approx(labelled_rows(picture), abs=3)
    assert labelled_rows(picture)[1] > 300


def test_what_cannot_be_written_is_told(chart: CompareChart, tmp_path: Path) -> None:
    for is_drawing in (False, True):
        with pytest.raises(OSError, match="none"):
            chart.save(tmp_path / "none" / "c", is_drawing=is_drawing)
