"""On a CPU the pictures of a run take turns with its steps: fewer of them, and none of what they tell is lost."""

from __future__ import annotations

import dataclasses

import pytest
from pytestqt.qtbot import QtBot

from app.presenters import picture_pace
from app.presenters.picture_pace import ON_CPU, ON_GPU, pace_of
from app.presenters.run_fold import RunFold
from app.services.machine import HOST_HZ, HZ, Machine
from app.widgets.run_charts import ChartParts, TrainCharts
from tests.app import events_of_a_run as told


def run_on(device: str, steps: int = 3) -> RunFold:
    run = RunFold()
    run.begin()
    for event in (told.started(), dataclasses.replace(told.plan(), device=device)):
        run.fold(event)
    for number in range(1, steps + 1):
        run.fold(told.step(number))
    return run


@pytest.fixture
def charts(qtbot: QtBot) -> TrainCharts:
    parts = ChartParts()
    while parts.make_next():
        pass
    made = TrainCharts(parts)
    qtbot.addWidget(made)
    return made


@pytest.fixture
def drawn(charts: TrainCharts, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many points each picture of a chart had."""
    found: dict[str, list[int]] = {"loss": [], "rate": []}
    for name, chart in (("loss", charts.loss), ("rate", charts.rate)):
        monkeypatch.setattr(
            chart, "settle", lambda name=name, chart=chart: found[name].append(len(chart._data[name][0]))
        )
    return found


def test_only_a_run_on_the_cpu_that_goes_on_is_spared() -> None:
    assert pace_of(run_on("cpu")) is ON_CPU
    assert pace_of(run_on("cuda")) is ON_GPU
    assert pace_of(RunFold()) is ON_GPU
    ended = run_on("cpu")
    ended.fold(told.finished())
    assert pace_of(ended) is ON_GPU
    assert all(getattr(ON_CPU, each.name) > getattr(ON_GPU, each.name) for each in dataclasses.fields(ON_CPU))


def test_steps_that_follow_each_other_are_one_picture_and_the_last_of_them_is_in_it(
    qtbot: QtBot, charts: TrainCharts, drawn: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        picture_pace, "ON_CPU", dataclasses.replace(ON_CPU, large_seconds=0.4, small_seconds=0.8)
    )
    run = run_on("cpu")
    for number in range(4, 24):
        charts.show_run(run)
        run.fold(told.step(number))
    charts.show_run(run)
    assert drawn == {"loss": [3], "rate": [3]}
    qtbot.waitUntil(lambda: drawn == {"loss": [3, 23], "rate": [3, 23]}, timeout=10_000)
    qtbot.wait(1000)
    assert drawn == {"loss": [3, 23], "rate": [3, 23]}, "nothing is drawn of which nothing is new"


def test_the_end_of_a_run_and_another_run_are_drawn_at_once(
    charts: TrainCharts, drawn: dict[str, list[int]]
) -> None:
    run = run_on("cpu")
    charts.show_run(run)
    run.fold(told.step(4))
    run.fold(told.finished())
    charts.show_run(run)
    charts.show_run(run_on("cpu", steps=7))
    assert drawn == {"loss": [3, 4, 7], "rate": [3, 4, 7]}


def test_each_step_on_a_gpu_is_drawn(charts: TrainCharts, drawn: dict[str, list[int]]) -> None:
    run = run_on("cuda")
    for number in range(4, 8):
        charts.show_run(run)
        run.fold(told.step(number))
    assert drawn == {"loss": [3, 4, 5, 6], "rate": [3]}


def test_the_machine_is_looked_at_less_often_where_there_is_no_gpu(qtbot: QtBot) -> None:
    machine = Machine()
    periods = []
    for has_gpu in (False, True):
        machine.set_gpu(has_gpu)
        periods.append(machine._sampler._period)
    assert periods == [1 / HOST_HZ, 1 / HZ]


def test_the_first_step_is_not_waited_for(charts: TrainCharts, drawn: dict[str, list[int]]) -> None:
    run = run_on("cpu", steps=0)
    charts.show_run(run)
    run.fold(told.step(1))
    charts.show_run(run)
    assert drawn == {"loss": [0, 1], "rate": [0, 1]}
