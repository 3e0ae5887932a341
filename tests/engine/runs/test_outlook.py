"""How long runs and the queue take, told from what runs of the same model took."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_engine.runs import outlook, plans, queue
from qlora_engine.runs.index import RunIndex
from qlora_engine.runs.pace import Paces
from qlora_engine.runs.record import RunFolder
from tests.support.run_folders import config_of, step_event, write_run

NIGHT = 1_700_000_000.0


def past(name: str = "done", state: str = "finished", **changes: object) -> RunFolder:
    """Ten steps of 4 rows: a quarter of a second each by its curve, 64 tokens each."""
    found = write_run(name, [1.0] * 10, state, model__name="tiny", training__effective_batch=4, **changes)
    found.update(plan={"total_steps": 10, "train_rows": 40}, model={"name": "tiny"})
    return found


def seconds(rows: int | None = None, tokens: int | None = None, **changes: object) -> float | None:
    usual = {"model__name": "tiny", "training__effective_batch": 8, "training__epochs": 2.0}
    config = config_of(**{**usual, **changes})
    return Paces(RunIndex().entries()).seconds_of(config, rows, tokens)


def waiting(*names: str, **changes: object) -> None:
    for name in names:
        config = config_of(output__name=name, model__name="tiny", training__max_steps=1, **changes)
        queue.add(plans.create(config))


def ends(**how: object) -> list[tuple[float | None, float | None]]:
    found = outlook.forecast(queue.read(), RunIndex().entries(), **how)  # type: ignore[arg-type]
    return [(one.begins_seconds, one.ends_seconds) for one in found]


def test_how_long_a_run_takes_is_told_from_a_finished_one() -> None:
    past().update(train_seconds=20.0)
    assert seconds() == pytest.approx(40.0)  # 80 rows at half a second each
    assert seconds(model__name="other") is None
    assert seconds(training__max_steps=20) == pytest.approx(80.0)  # as the run itself will count its steps


@pytest.mark.parametrize("state", ["stopped", "crashed", "failed", "running"])
def test_a_run_that_is_not_finished_tells_by_the_steps_so_far(state: str) -> None:
    folder = past(state=state)
    if state == "running":
        folder.claim()
    assert seconds() == pytest.approx(80 * 0.25 / 4)
    folder.release()


def test_the_same_rows_at_another_length_are_told_by_the_token() -> None:
    past(data__seq_len=256)
    assert seconds(data__seq_len=512) == pytest.approx(80 * 0.25 / 4)
    assert seconds(data__seq_len=512, data__path="other.jsonl") is None
    # 40 rows of other data with 640 tokens, 8 a step, twice: at 256 tokens a second
    assert seconds(40, 640, data__seq_len=512, data__path="other.jsonl") == pytest.approx(2 * 640 / 256)


def test_where_nothing_is_known_nothing_is_made_up() -> None:
    write_run("planned", [], "stopped", model__name="tiny")
    assert seconds() is None
    waiting("a")
    assert ends(places=["cpu"]) == [(0.0, None)]
    assert outlook.whole_seconds(outlook.forecast(queue.read(), ())) is None


def test_each_gpu_takes_the_next_that_may_run_there() -> None:
    past().update(train_seconds=20.0)
    waiting("a", "b")
    assert ends(places=["cpu"]) == [(0.0, 8.0), (8.0, 16.0)]
    waiting("c")
    queue.add(
        plans.create(config_of(output__name="d", model__name="tiny", training__max_steps=1)), gpu="gpu1"
    )
    assert ends(places=["gpu0", "gpu1"]) == [(0.0, 8.0), (0.0, 8.0), (8.0, 16.0), (8.0, 16.0)]
    found = outlook.forecast(queue.read(), RunIndex().entries(), places=["gpu0", "gpu1"])
    assert outlook.whole_seconds(found) == 16.0


def test_a_pause_a_time_and_a_run_started_by_hand_hold_the_queue_back() -> None:
    past().update(train_seconds=20.0)
    waiting("a", "b")
    queue.start_at(NIGHT + 100)
    assert ends(places=["cpu"], now=NIGHT) == [(100.0, 108.0), (108.0, 116.0)]
    assert queue.take("cpu", now=NIGHT + 100) is not None
    assert ends(places=["cpu"], now=NIGHT) == [(0.0, 8.0), (100.0, 108.0)]
    queue.pause()
    assert ends(places=["cpu"], now=NIGHT)[1] == (None, None)
    queue.pause(False)
    queue.start_at(None)
    queue.give_back(queue.read().entries[0].run_dir)
    by_hand = past("by-hand", "running", model__device="cpu")
    by_hand.append(replace(step_event(11, 20, 1.0), eta_seconds=30.0))
    by_hand.claim()
    assert ends(places=["cpu"]) == [(30.0, 38.0), (38.0, 46.0)]
    by_hand.release()
