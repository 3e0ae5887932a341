"""A long curve is drawn with as many points as can be seen, and with every extreme."""

from __future__ import annotations

import numpy as np
from pytestqt.qtbot import QtBot

from app.widgets.compare_chart import CompareChart

POINTS = 20_000


def test_each_column_of_pixels_shows_its_highest_and_lowest_and_nothing_twice(qtbot: QtBot) -> None:
    chart = CompareChart()
    qtbot.addWidget(chart)
    chart.resize(800, 400)
    values = np.random.default_rng(0).normal(size=POINTS)
    values[7_777], values[12_345] = 50.0, -50.0
    chart.show_lines([("a run", "#ff0000", np.arange(POINTS), values, False)], None)
    chart.show()
    chart.grab()
    drawn = chart.lines[0].curve.getData()[1]
    width = chart.plot.getPlotItem().vb.width()
    assert width < len(drawn) < 4 * width + 8
    assert (max(drawn), min(drawn)) == (50.0, -50.0)


def test_a_curve_that_is_zoomed_into_shows_each_point(qtbot: QtBot) -> None:
    chart = CompareChart()
    qtbot.addWidget(chart)
    chart.resize(800, 400)
    chart.show_lines([("a run", "#ff0000", np.arange(POINTS), np.sin(np.arange(POINTS)), False)], None)
    chart.show()
    chart.plot.setXRange(5_000, 5_100, padding=0)
    chart.grab()
    steps, values = chart.lines[0].curve.getData()
    inside = (steps >= 5_000) & (steps <= 5_100)
    assert list(steps[inside]) == list(range(5_000, 5_101))
    assert np.array_equal(values[inside], np.sin(steps[inside]))
