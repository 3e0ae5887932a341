"""A long curve is drawn with as many points as can be seen, and with every extreme."""

from __future__ import annotations

import numpy as np
import pytest
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


@pytest.mark.parametrize("is_log", [False, True])
def test_about_twice_as_many_points_as_columns_settle(qtbot: QtBot, is_log: bool) -> None:
    """How many are drawn must not change the range that decides how many are drawn."""
    chart = CompareChart()
    qtbot.addWidget(chart)
    chart.resize(800, 400)
    chart.set_scale("step", "Loss", "nats/token", is_log=is_log)
    chart.show()
    chart.grab()
    box = chart.plot.getPlotItem().vb
    width = int(box.width())
    for points in range(int(1.75 * width), 2 * width, 5):
        values = np.full(points, 1.0) if points % 2 else 1.5 + np.cos(np.arange(points))
        chart.show_lines([("a run", "#ff0000", np.arange(points), values, False)], None)
        chart.grab()
        chart.grab()
        settled = box.viewRange()
        chart.grab()
        assert box.viewRange() == settled, points
        expected = (
            (np.log10(values.min()), np.log10(values.max())) if is_log else (values.min(), values.max())
        )
        assert settled[1][0] < expected[0] <= expected[1] < settled[1][1]
