"""Numbers as people read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.presenters import words


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "n/a"), (0, "0\u00a0B"), (900, "900\u00a0B"), (12 * 1024, "12.0\u00a0KiB"), (336 * 1024**2, "336\u00a0MiB"),
        (int(4.5 * 1024**2), "4.50\u00a0MiB"), (1002 * 1024**2, "0.98\u00a0GiB"), (18.24 * 1024**3, "18.24\u00a0GiB"), (780 * 1024**3, "780\u00a0GiB"), (1000 * 1024**3, "1,000\u00a0GiB"),
    ],
)  # fmt: skip
def test_bytes(count: float | None, text: str) -> None:
    assert words.bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "n/a"), (float("inf"), "n/a"), (0.5, "0.50\u00a0s"), (45, "45\u00a0s"), (840, "14\u00a0min"), (7500, "2\u00a0h 05\u00a0min"), (300_000, "3\u00a0d 11\u00a0h")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert words.duration_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "n/a"), (float("nan"), "n/a"), (0.0, "0"), (3.16829, "3.168"), (0.0002, "0.0002000"), (22719.4, "22,719"), (1e-7, "1.000e-07")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert words.number_text(value) == text


@given(st.floats(min_value=1e-9, max_value=1e12))
def test_a_number_never_has_more_than_its_digits_or_loses_them(value: float) -> None:
    text = words.number_text(value)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=1e-3)
    significant = re.sub(r"e.*$", "", text).replace(",", "").replace(".", "").lstrip("0")
    assert len(significant) <= 6


@given(st.integers(min_value=0, max_value=2**50))
def test_bytes_are_within_one_percent_of_what_they_say(count: int) -> None:
    number, unit = words.bytes_text(count).split()
    size = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}[unit]
    assert float(number.replace(",", "")) * size == pytest.approx(count, rel=0.01, abs=0.5)


def test_joined_words() -> None:
    assert [words.joined(w) for w in ((), ("a",), ("a", "b"), ("a", "b", "c"))] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
