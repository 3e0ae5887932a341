"""Numbers of rows as people write them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_engine import row_numbers
from qlora_engine.config import TrainingConfig, validate, with_value

NUMBERS = st.sets(st.integers(1, 60))


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("", ()),
        ("3", ((3, 3),)),
        ("3, 8-12", ((3, 3), (8, 12))),
        (" 8 - 12 ; 3,9 13\n", ((3, 3), (8, 13))),
        ("8\u201312", ((8, 12),)),
        ("5,4,4,3", ((3, 5),)),
    ],
)
def test_numbers_and_ranges_are_read_in_any_order(text: str, ranges: row_numbers.Ranges) -> None:
    assert row_numbers.parsed(text) == ranges
    assert row_numbers.parsed(row_numbers.text_of(ranges)) == ranges


@pytest.mark.parametrize("text", ["x", "3, 0", "9-8", "-3", "3-", "1.5", "\u0663", "1-2-3", "9" * 13])
def test_what_names_no_rows_is_refused_by_the_piece(text: str) -> None:
    with pytest.raises(ValueError):
        row_numbers.parsed(text)
    (issue,) = validate(with_value(TrainingConfig(), "data.leave_out", text))
    assert (issue.path, "names none" in issue.message) == ("data.leave_out", True)
    assert row_numbers.readable(text) == ()


@given(NUMBERS, NUMBERS, st.integers(1, 60))
def test_they_are_sets_of_numbers(some: set[int], others: set[int], number: int) -> None:
    ranges = row_numbers.of_numbers(some)
    text = row_numbers.text_of(ranges)
    assert row_numbers.count(ranges) == len(some)
    assert {n for n in range(1, 70) if row_numbers.holds(ranges, n)} == some
    assert set((np.flatnonzero(row_numbers.among(ranges, np.arange(1, 70))) + 1).tolist()) == some
    assert row_numbers.within(ranges, 30) == row_numbers.of_numbers(n for n in some if n <= 30)

    def named(result: str) -> set[int]:
        return {n for n in range(1, 200) if row_numbers.holds(row_numbers.parsed(result), n)}

    assert (
        named(row_numbers.added(text, row_numbers.text_of(row_numbers.of_numbers(others)))) == some | others
    )
    assert named(row_numbers.without(text, number)) == some - {number}
    last = number + 4
    moved = {n if n < number else n - 5 for n in some if not number <= n <= last}
    assert named(row_numbers.closed_up(text, number, last)) == moved
