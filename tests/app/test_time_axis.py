"""The axis of time: what is shown, its labels, and that each column of pixels is what was sampled."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app.presenters import numerals
from app.services.number_style import style_of
from app.widgets.time_axis import TimeAxis
from app.widgets.time_chart import TimeChart
from app.widgets.time_layers import Layer, columns_of, runs_of_known
from app.widgets.time_scale import nice_seconds, nice_step, time_text
from tests.app.traces import BEGAN, is_near, pixels


def test_the_window_follows_until_it_is_held_moved_or_zoomed(qtbot: QtBot) -> None:
    axis = TimeAxis()
    axis.know(BEGAN, BEGAN + 1000)
    axis.show_span(60)
    assert axis.window == (BEGAN + 940, BEGAN + 1000)
    axis.pause(True)
    axis.know(BEGAN, BEGAN + 1010)
    assert axis.window == (BEGAN + 940, BEGAN + 1000)
    axis.pause(False)
    assert axis.window == (BEGAN + 950, BEGAN + 1010)
    axis.move(-100)
    assert axis.window == (BEGAN + 850, BEGAN + 910)
    axis.zoom(0.5, BEGAN + 880)
    assert axis.window == (BEGAN + 865, BEGAN + 895)
    assert not axis.is_following
    axis.zoom(1000, BEGAN + 880)
    assert axis.is_following
    assert axis.window == (BEGAN, BEGAN + 1010)
    axis.show_span(None)
    axis.know(BEGAN, BEGAN + 2000)
    assert axis.window == (BEGAN, BEGAN + 2000)
    axis.pause(True)
    axis.know(BEGAN, BEGAN + 3000)
    assert axis.window == (BEGAN, BEGAN + 2000)


@settings(max_examples=200, deadline=None)
@given(
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("zoom"), st.floats(0.01, 100), st.floats(-1, 2)),
            st.tuples(st.just("move"), st.floats(-1e6, 1e6), st.just(0.0)),
            st.tuples(st.just("pause"), st.sampled_from([0.0, 1.0]), st.just(0.0)),
            st.tuples(st.just("span"), st.sampled_from([0.0, 60.0, 600.0]), st.just(0.0)),
        ),
        max_size=20,
    ),
    length=st.floats(0, 1e6),
)
def test_no_move_leads_out_of_what_was_sampled(moves: list[tuple[str, float, float]], length: float) -> None:
    axis = TimeAxis()
    axis.know(BEGAN, BEGAN + length)
    for what, amount, where in moves:
        start, end = axis.window
        if what == "zoom":
            axis.zoom(amount, start + where * (end - start))
        elif what == "move":
            axis.move(amount)
        elif what == "pause":
            axis.pause(bool(amount))
        else:
            axis.show_span(amount or None)
        start, end = axis.window
        assert end - start >= 1.999
        assert end <= max(axis.newest, axis.first + 2) + 1e-3
        assert end > axis.first - 1e-3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(30, "0:30"), (760, "12:40"), (3900, "1:05:00"), (-30, "\u22120:30"), (-0.2, "0:00")],
)
def test_times_are_written_as_on_a_clock(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_labels_of_an_axis_are_in_the_language_of_numbers(qapp: QApplication) -> None:
    from app.widgets.charts import QuietAxis

    axis = QuietAxis("left")

    def labels() -> tuple[list[str], list[str], list[str], list[str]]:
        axis.setLogMode(False)
        plain = (
            axis.tickStrings(*each)
            for each in (([0.0, 0.5], 1.0, 0.5), ([5_000.0, 1.2e6], 1.0, 1.0), ([2e-4], 1.0, 1e-4))
        )
        found = [*plain]
        axis.setLogMode(True)
        return (*found, axis.tickStrings([math.log10(0.5), 5.0], 1.0, None))  # type: ignore[return-value]

    assert labels() == (["0", "0.5"], ["5,000", "1,200,000"], ["0.0002"], ["0.5", "10\u2075"])
    numerals.use(style_of("de_DE"))
    try:
        assert labels() == (["0", "0,5"], ["5.000", "1.200.000"], ["0,0002"], ["0,5", "10\u2075"])
    finally:
        numerals.use(numerals.ENGLISH)


@given(st.floats(1e-9, 1e12))
def test_steps_are_round_and_never_finer_than_asked(rough: float) -> None:
    step = nice_step(rough)
    assert rough * 0.998 <= step <= rough * 10.01
    assert float(f"{step:.0e}"[0]) in (1, 2, 5)
    assert nice_seconds(rough) >= rough * 0.999


def test_gaps_split_a_line() -> None:
    assert runs_of_known(np.array([math.nan, 1, 2, math.nan, 3, math.nan])) == [(1, 3), (4, 5)]
    assert runs_of_known(np.array([math.nan])) == []
    assert runs_of_known(np.array([1.0, 2.0])) == [(0, 2)]


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.one_of(st.floats(0, 100), st.just(math.nan)), min_size=1, max_size=300),
    width=st.integers(1, 120),
    shift=st.floats(-50, 50),
    stretch=st.floats(0.01, 3),
)
def test_every_sample_reaches_its_column_of_pixels_and_none_is_invented(
    values: list[float], width: int, shift: float, stretch: float
) -> None:
    xs, found = shift + stretch * np.arange(len(values)), np.array(values)
    columns = columns_of(xs, found, width)
    for x, value in zip(xs, values, strict=True):
        if 0 <= x < width and math.isfinite(value):
            assert columns[int(x)] >= value
    known = found[np.isfinite(found)]
    assert columns.max() <= (known.max() if known.size else 0) + 1e-9
    if not known.size:
        assert not columns.any()


def test_a_band_is_painted_where_it_is_and_a_gap_is_left_empty(qtbot: QtBot) -> None:
    axis = TimeAxis()
    chart = TimeChart(axis)
    qtbot.addWidget(chart)
    chart.resize(400, 200)
    axis.know(BEGAN, BEGAN + 100)
    axis.show_span(None)
    times = BEGAN + np.arange(101.0)
    values = np.where((times > BEGAN + 40) & (times < BEGAN + 60), np.nan, 1.0)
    chart.show_layers([Layer("adapters", "Adapters", "#00ff00", times, values, True)])
    image, plot = pixels(chart), chart._plot
    ratio = image.width() / chart.width()

    def at(share: float, height: float) -> QColor:
        x, y = plot.left() + share * plot.width(), plot.bottom() - height * plot.height()
        return image.pixelColor(int(x * ratio), int(y * ratio))

    assert at(0.2, 0.43).green() > 120
    assert at(0.8, 0.43).green() > 120
    assert at(0.5, 0.43).green() < 90
    assert at(0.2, 0.96).green() < 90


def test_a_chart_of_nothing_has_short_labels(qtbot: QtBot) -> None:
    chart = TimeChart(TimeAxis(), is_small=True)
    qtbot.addWidget(chart)
    chart.resize(300, 60)
    chart.show_layers([])
    image = pixels(chart)
    ground = image.pixelColor(0, 0)
    edge = (image.pixelColor(x, y) for x in range(2) for y in range(image.height()))
    assert all(is_near(colour, ground) for colour in edge), "its labels are cut off at the left"
