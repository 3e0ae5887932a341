"""A number with its noun and its verb."""

from __future__ import annotations

import pytest

from qlora_engine.counting import agreeing, counted


@pytest.mark.parametrize(
    ("verb", "of_one"),
    [
        ("are", "is"),
        ("were", "was"),
        ("have", "has"),
        ("do", "does"),
        ("carry", "carries"),
        ("stay", "stays"),
        ("repeat", "repeats"),
        ("teach", "teaches"),
        ("go", "goes"),
        ("lose", "loses"),
    ],
)
def test_the_verb_agrees(verb: str, of_one: str) -> None:
    assert agreeing(1, verb) == of_one
    assert agreeing(0, verb) == agreeing(2, verb) == verb
    assert counted(1, "row", verb) == f"1 row {of_one}"
    assert counted(1200, "row", verb) == f"1,200 rows {verb}"


def test_a_part_of_many_has_the_noun_of_the_many_and_its_own_verb() -> None:
    assert counted(1, "row", "are", of=40) == "1 of 40 rows is"
    assert counted(2, "row", "are", of=40) == "2 of 40 rows are"
    assert counted(1, "row", "are", of=1) == "1 of 1 row is"
    assert counted(0, "row") == "0 rows"
