"""A comparison's numbers are those that pandas reads from the same files."""

from __future__ import annotations

import csv
import io
import math
import random
import time
from collections.abc import Callable

import pandas as pd
import pytest

from qlora_engine.errors import EngineError
from qlora_engine.events import EvaluationFinished, Noticed, RunStarted
from qlora_engine.runs import curves, notes
from qlora_engine.runs.comparison import compare
from qlora_engine.runs.record import RunFolder
from tests.support.pace import limit
from tests.support.run_folders import step_event, write_run


def noisy(seed: int, count: int) -> list[float]:
    chance = random.Random(seed)
    return [2.0 * math.exp(-n / 50) + chance.random() / 5 for n in range(count)]


def by_pandas(folder: RunFolder) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ten lines that anyone would write."""
    told = pd.read_json(folder.metrics_path, lines=True, precise_float=True)
    for place in told.index[told.event == "RunStarted"]:
        if told.is_resumed[place]:
            lost = (told.index < place) & (told.step > told.from_step[place])
            told = told[~lost]
    steps = told[told.event == "StepFinished"].set_index("step")
    return steps, told[told.event == "EvaluationFinished"].set_index("step")


def test_every_number_is_that_of_pandas() -> None:
    runs = [write_run("a", noisy(1, 300)), write_run("b", noisy(2, 250), lora__rank=8)]
    runs[1].append(RunStarted("b", str(runs[1].path), 1, True, 1.0, from_step=240))
    for number in range(241, 261):
        runs[1].append(step_event(number, 260, 0.5 + number / 1000, tokens=100))
    runs[1].append(EvaluationFinished(250, 0.75, 10, 0.1, True, 1.0))
    found = compare(runs)
    for folder, side in zip(runs, found.sides, strict=True):
        steps, held = by_pandas(folder)
        assert list(side.curve.columns["step"]) == list(steps.index)
        assert list(side.curve.columns["loss"]) == list(steps.loss)
        assert list(side.curve.x("tokens")) == list(steps.tokens.cumsum())
        assert list(side.curve.x("seconds")) == pytest.approx(list(steps.step_seconds.cumsum()))
        assert list(side.curve.y("loss", 0.9)) == pytest.approx(list(steps.loss.ewm(alpha=0.1).mean()))
        assert [e.loss for e in side.curve.held_out] == list(held.loss)
        assert side.curve.held_out_x("tokens") == [steps.tokens.cumsum()[step] for step in held.index]
        assert side.figures.tokens == steps.tokens.sum()
        assert side.figures.seconds == pytest.approx(steps.step_seconds.sum())
        assert side.figures.tokens_per_second == pytest.approx(steps.tokens.sum() / steps.step_seconds.sum())
        assert (side.figures.steps, side.figures.final_loss) == (steps.index[-1], steps.loss.iloc[-1])
    assert len(found.sides[1].curve) == 260
    (difference,) = [d for d in found.differences if d.path]
    assert (difference.path, difference.values) == ("lora.rank", (16, 8))


def test_curves_are_aligned_by_step_and_written_as_csv() -> None:
    one, two = write_run("one", [3.0, 2.0, 1.0]), write_run("two", noisy(1, 11))
    notes.rename(two.path, "=cmd()")
    found = compare([one, two])
    steps, values = found.aligned()
    assert steps == list(range(1, 12))
    assert values[0] == [3.0, 2.0, 1.0, *[None] * 8]
    assert found.at(2.5) == (2.0, values[1][1])
    assert found.at(0.5) == (None, None)
    assert found.at(4) == (None, values[1][3])
    rows = list(csv.reader(io.StringIO(found.csv())))
    assert rows[0][3:6] == ["one: loss", "one: held-out loss", "'=cmd(): tokens"]
    frame = pd.read_csv(io.StringIO(found.csv()), index_col="step")
    assert frame["one: loss"].dropna().tolist() == [3.0, 2.0, 1.0]
    assert frame["'=cmd(): held-out loss"].dropna().to_dict() == {10: pytest.approx(values[1][9] + 0.1)}


def test_what_is_unknown_or_damaged_is_left_out_and_never_made_up() -> None:
    folder = write_run("one", [2.0, 1.0])
    folder.append(step_event(3, 5, float("nan")))
    text = folder.metrics_path.read_text(encoding="utf-8")
    folder.metrics_path.write_text(text.replace('"loss": 2.0', '"loss": 9.0'), encoding="utf-8")
    folder.append(step_event(4, 5, 0.5))
    with folder.metrics_path.open("a", encoding="utf-8") as file:
        file.write('{"event": "StepFinished", "step": 5')
    curve = curves.read(folder.path)
    assert list(curve.columns["step"]) == [2.0, 3.0, 4.0]
    assert math.isnan(curve.columns["loss"][1])
    assert curve.value_at(3) is None
    assert list(curves.smoothed(curve.columns["loss"], 0.5))[::2] == pytest.approx(
        [1.0, (0.25 * 1 + 0.5) / 1.25]
    )
    series = curve.columns["loss"]
    assert curves.typical_range([series]) == (0.5, 1.0)
    assert compare([folder, write_run("two", [])]).sides[1].figures.final_loss is None


def test_smoothing_over_gaps_is_pandas_too() -> None:
    values = curves.array("d", [1.0, math.nan, 3.0, 2.0])
    told = pd.Series(values).ewm(alpha=0.3).mean()
    assert list(curves.smoothed(values, 0.7))[2:] == pytest.approx(list(told)[2:])


def bytes_of(curve: curves.Curve) -> list[bytes]:
    """NaN is not equal to itself."""
    return [column.tobytes() for column in curve.columns.values()]


def test_a_long_curve_comes_from_the_cache_until_its_file_changes() -> None:
    folder = write_run("long", noisy(3, 1000))
    folder.append(Noticed("info", "training.early_stop", "Stopped early"))
    first, again = curves.read(folder.path), curves.read(folder.path)
    assert bytes_of(first) == bytes_of(again)
    assert first.held_out == again.held_out
    assert [notice.code for notice in again.notices] == ["training.early_stop"]
    place = curves._place(folder.metrics_path)
    content = bytearray(place.read_bytes())
    content[-100] ^= 1
    place.write_bytes(content)
    assert bytes_of(curves.read(folder.path)) == bytes_of(first)
    folder.append(step_event(1001, 1001, 0.125))
    assert curves.read(folder.path).columns["loss"][-1] == 0.125


def test_a_reader_goes_on_where_it_was() -> None:
    folder = write_run("live", [2.0, 1.0])
    reader = curves.CurveReader(folder.path)
    assert reader.update()
    assert not reader.update()
    folder.append(step_event(3, 9, 0.5))
    assert reader.update()
    assert list(reader.curve.columns["loss"]) == [2.0, 1.0, 0.5]
    folder.append(RunStarted("live", "", 1, True, 1.0, from_step=1))
    reader.update()
    assert list(reader.curve.columns["step"]) == [1.0]


def test_one_run_is_no_comparison() -> None:
    folder = write_run("one", [1.0])
    with pytest.raises(EngineError, match="two or more different"):
        compare([folder, RunFolder(folder.path)])


def least_of_three(work: Callable[[], object]) -> float:
    """Processor time of the least disturbed: a collection of garbage may fall into any of them."""
    took = []
    for _ in range(3):
        began = time.thread_time()
        work()
        took.append(time.thread_time() - began)
    return min(took)


def test_twenty_thousand_steps_are_read_in_an_eighth_of_what_eight_may_take() -> None:
    """`make bench-runs` measures eight of them, and the list of two thousand runs."""
    folder = write_run("long", noisy(4, 20_000))
    took = least_of_three(lambda: curves.CurveReader(folder.path).update())
    assert took < limit(0.7 / 8)
    assert len(curves.read(folder.path)) == 20_000
    assert least_of_three(lambda: curves.read(folder.path)) < took / 3
