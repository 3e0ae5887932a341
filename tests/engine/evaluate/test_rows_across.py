"""Held-out rows of several runs side by side: which are comparable, in which order, and what is not known."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_engine.evaluate import prediction_file
from qlora_engine.evaluate.rows_across import across
from tests.support.scored_runs import finished, score


def test_rows_that_all_held_out_stand_side_by_side_those_first_that_differ_most() -> None:
    one, two = finished("one"), finished("two", lora__rank=4)
    score(one, {1: 0.5, 2: 1.0, 3: 2.0, 9: 9.0}, {1: "right", 2: "two"})
    score(two, {1: 0.6, 2: 3.0, 3: 2.5, 8: 9.0}, {1: "wrong", 2: "deux"}, place="worst")
    found = across([one, two])
    assert [(row.row, row.losses, row.answers) for row in found.rows] == [
        (2, (1.0, 3.0), ("two", "deux")),
        (1, (0.5, 0.6), ("right", "wrong")),
    ]
    assert (found.rows[0].question, found.rows[0].expected) == ("What is 2?", "It is 2.")
    assert found.common == 3
    assert found.losses == (pytest.approx(3.5 / 3), pytest.approx(6.1 / 3))
    assert (found.unscored, found.problem) == ((), "")


def test_a_row_that_only_one_run_answered_comes_after_those_that_all_did() -> None:
    one, two = finished("one"), finished("two")
    score(one, {1: 0.5, 2: 9.0}, {1: "a", 2: "b"})
    score(two, {1: 0.5, 2: 1.0}, {1: "c"})
    assert [row.answers for row in across([one, two]).rows] == [("a", "c"), ("b", None)]


def test_what_was_not_scored_or_is_of_an_earlier_adapter_is_named() -> None:
    one, two, three = finished("one"), finished("two"), finished("three")
    score(one, {1: 0.5}, {1: "a"})
    score(three, {1: 0.5}, {1: "a"})
    (three.adapter_dir / "adapter_model.safetensors").write_bytes(b"trained again")
    found = across([one, two, three])
    assert found.unscored == (1, 2)
    assert found.losses == (0.5, None, None)
    assert found.rows[0].answers == ("a", None, None)
    (one.path / prediction_file.ROWS_FILE).write_text("damaged")
    assert across([one]).losses == (0.5,), "what the document tells is left"
    assert across([]).rows == ()


@pytest.mark.parametrize("changes", [{"data": "c"}, {"data__held_out_path": "other.jsonl"}])
def test_rows_of_other_data_are_not_compared(changes: dict[str, Any]) -> None:
    one, two = finished("one"), finished("two", **changes)
    score(one, {1: 0.5}, {1: "a"})
    score(two, {1: 0.6}, {1: "b"})
    found = across([one, two])
    assert (found.rows, found.common) == ((), 0)
    assert "different data" in found.problem


def test_runs_of_another_seed_have_no_row_in_common() -> None:
    one, two = finished("one"), finished("two")
    score(one, {1: 0.5}, {1: "a"})
    score(two, {2: 0.6}, {2: "b"})
    assert "same seed" in across([one, two]).problem
