"""Every sentence of the doctor about one row, and about two: number, noun and verb agree."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qlora_engine import row_numbers
from qlora_engine.config import DataSettings
from qlora_engine.data import doctor, grades, split
from qlora_engine.data.formats import marks
from qlora_engine.data.report import DataReport, Drops, Found
from tests.engine.data.test_doctor import prepare
from tests.support.tiny import instruction_rows, write_rows

AFTER_ONE = {"left", "cannot", "of", "the", "nearly"}
"""What may follow `1 row` and is no verb of one."""
PLACE = ("a.jsonl", 1)
WITHOUT_A_NUMBER = {
    "data.template",
    "data.nothing_held_out",
    "data.bos",
    "data.no_such_row",
    "data.opened_thought",
    "data.nothing_trained",
}


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Found, DataReport, DataSettings]:
    """What the doctor is asked about ten plain rows with a held-out file."""
    heard: list[Any] = []
    monkeypatch.setattr(doctor, "findings", lambda *asked: heard.append(asked) or ())
    held = write_rows(tmp_path / "held.jsonl", instruction_rows(30)[20:])
    prepare(write_rows(tmp_path / "a.jsonl", instruction_rows(10)), held_out_path=str(held), is_look=True)
    monkeypatch.undo()
    return heard[0]


def texts(known: tuple[Found, DataReport, DataSettings], count: int) -> dict[str, list[str]]:
    """Every sentence about `count` rows, by its code."""
    found, report, settings = known
    numbers = list(range(1, count + 1))
    some = np.arange(count)
    tokens, held = found.tokens, found.held_tokens
    tokens.noted = {
        "note:its reasoning is left out": row_numbers.of_numbers(found.train.numbers[:count].tolist())
    }
    tokens.problems = {
        f'"{k}" is not used; data.ignore = ["{k}"] trains it without': numbers for k in ("images",)
    }
    held.problems = {"its output is empty": numbers}
    counters = {
        field.name: count for field in fields(DataReport)
        if field.type == "int" and field.name not in ("train_rows", "rows_read", "length_max")
    }  # fmt: skip
    report = replace(
        report, **counters, template="alpaca", unused_keys={"meta": count}, bos_per_row=(1, 1 + count)
    )
    sides = replace(
        found.sides, left_out={split.EXACT: some, split.NEAR: some}, copies=some, near_copies=some,
        duplicates=count, near_duplicates=count,
    )  # fmt: skip
    left = replace(settings, leave_out=row_numbers.text_of(row_numbers.of_numbers(range(9, 9 + count))))
    asked = [
        *doctor.findings(replace(found, sides=sides), report, left),
        *doctor.findings(
            replace(found, sides=sides), replace(report, held_out_rows=0, train_rows=0), settings
        ),
        *doctor.findings(found, replace(report, held_out_rows=0), replace(settings, leave_out="99")),
        *doctor.left_out(Drops({"it is not JSON": numbers}), 9, "alpaca", 0.5, lambda _: PLACE),
        *doctor.left_out(Drops({"it is not JSON": numbers}), count, "alpaca", 0.5, lambda _: PLACE),
        *doctor.left_out(Drops({marks.UNWANTED: numbers}), 9, "alpaca", 0.5, lambda _: PLACE),
        *doctor.left_out(
            Drops({f'{marks.UNWANTED}; data.ignore = ["rejected"] trains it': numbers}),
            9,
            "alpaca",
            0.5,
            lambda _: PLACE,
        ),
    ]
    opening: Any = SimpleNamespace(opens_thoughts=True)
    asked += doctor._thoughts(replace(found, template=opening), replace(report, reasoning_rows=0), settings)
    by_code: dict[str, list[str]] = {}
    for finding in asked:
        by_code.setdefault(finding.code, []).append(f"{finding.text} {finding.repair_text}")
    return by_code


def of_the_source() -> set[str]:
    """The codes that the doctor can give; a question's are the format's."""
    made = "".join(inspect.getsource(module) for module in (doctor, grades))
    return set(re.findall(r'"(data\.[a-z_]+)"', made)) - set(
        re.findall(r'"setting": "(data\.[a-z_]+)"', made)
    ) | {"data.leave_out"}


def test_every_finding_about_one_row_and_about_two_is_grammatical(known: Any) -> None:
    one, two = texts(known, 1), texts(known, 2)
    assert set(one) == set(two)
    assert of_the_source() - set(one) <= {"data.reading"}, "a finding that no test has read"
    for code, sentences in one.items():
        for text in sentences:
            assert not re.search(r"\b1 \w*[a-z]s\b(?! of)", text), text
            assert (" they " not in text and " them" not in text.replace("them out", "")) or code == "x", text
            for verb in re.findall(r"\b1 (?:row|token|piece)\b,? (\w+)", text):
                assert verb in AFTER_ONE or verb.endswith("s"), text
    for code, sentences in two.items():
        for text in sentences:
            assert not re.search(r"\b2 (?:row|token|piece)\b", text), text
            for verb in re.findall(r"\b2 (?:rows|tokens|pieces) (\w+)", text):
                assert verb in AFTER_ONE or not verb.endswith("s"), text
        assert code in WITHOUT_A_NUMBER or sentences != one[code], code
