"""Rows that a person leaves out by number: nowhere trained or held out, counted, and said by everyone who is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qlora_engine import data, row_numbers
from qlora_engine.config import DataSettings, TrainingConfig, with_value
from qlora_engine.data import clean, doctor, inspection, reading_check
from qlora_engine.data.pipeline import BY_HAND
from qlora_engine.data.row_table import RowTable
from qlora_engine.errors import EngineError
from qlora_engine.training import identity
from tests.engine.data.test_doctor import codes, prepare, sharegpt
from tests.support.tiny import instruction_rows, tiny_tokenizer, write_rows

LEFT = (3, 8, 9, 10)


@pytest.fixture
def rows() -> list[dict[str, str]]:
    """Row 12 repeats row 8, 20 says next to nothing, 21 is by far the longest."""
    found = instruction_rows(40)
    found[11] = dict(found[7])
    found[19] = {"instruction": "A?", "output": "B"}
    found[20] = {"instruction": "long", "output": "word " * 90}
    return found


def fed(prepared: data.PreparedData) -> tuple[list[list[int]], list[list[int]]]:
    return [r.input_ids for r in prepared.train], [r.input_ids for r in prepared.held_out]


@pytest.mark.parametrize("own_file", [False, True])
def test_the_run_is_that_of_a_file_without_them(tmp_path: Path, rows: list[Any], own_file: bool) -> None:
    held = str(write_rows(tmp_path / "held.jsonl", [rows[4], *instruction_rows(60)[50:]]))
    settings: dict[str, Any] = {"held_out_path": held} if own_file else {"held_out_fraction": 0.2}
    left = (*LEFT, 21)
    without = [row for number, row in enumerate(rows, 1) if number not in left]
    asked = prepare(write_rows(tmp_path / "a.jsonl", rows), leave_out="3, 8-10, 21", **settings)
    plain = prepare(write_rows(tmp_path / "b.jsonl", without), **settings)
    assert fed(asked) == fed(plain)
    mine, theirs = asked.report.to_json(), plain.report.to_json()
    known = ("train_rows", "held_out_rows", "duplicate_rows", "seq_len", "lengths", "keeps", "length_max")
    assert {name: mine[name] for name in known} == {name: theirs[name] for name in known}
    assert mine["rows_dropped"] == theirs["rows_dropped"] + len(left)


def test_they_are_counted_by_their_reason_and_said_by_the_doctor_and_the_check(
    tmp_path: Path, rows: list[Any]
) -> None:
    file = write_rows(tmp_path / "a.jsonl", rows)
    prepared = prepare(file, leave_out="3, 8-10, 99")
    (drop,) = [d for d in prepared.report.drops if d["reason"] == BY_HAND]
    assert (drop["count"], list(drop["first_rows"])) == (4, list(LEFT))
    found = codes(prepared)
    said = found["data.leave_out"]
    assert (said["grade"], said["count"], list(said["rows"])) == ("note", 4, list(LEFT))
    assert said["repair"] == {"setting": "data.leave_out", "value": ""}
    assert "row 99, and the data end with row 40" in found["data.no_such_row"]["text"]
    assert found["data.no_such_row"]["repair"]["value"] == "3, 8-10"
    checked = {
        f["code"]: f for f in reading_check.check(DataSettings(path=str(file), leave_out="3, 8-10, 99"))
    }
    for code in ("data.leave_out", "data.no_such_row"):
        assert checked[code]["text"] == found[code]["text"]
    assert "data.leave_out" not in codes(prepare(file))


def test_bad_rows_that_were_left_out_block_no_more(tmp_path: Path) -> None:
    bad = {n: {"conversations": "text"} for n in range(1, 5)}
    file = write_rows(tmp_path / "a.jsonl", sharegpt(10, bad))
    with pytest.raises(EngineError, match="4 of 10 rows cannot be read"):
        prepare(file, bad_rows=0.3)
    (found,) = [
        f for f in prepare(file, bad_rows=0.3, is_look=True).report.findings if f["grade"] == "blocks"
    ]
    assert found["leave_out"] == "1-4"
    prepared = prepare(file, bad_rows=0.3, leave_out=found["leave_out"])
    assert len(prepared.train) + len(prepared.held_out) == 6
    assert [d["reason"] for d in prepared.report.drops] == [BY_HAND]
    settings = DataSettings(path=str(file), bad_rows=0.3, leave_out="1-4")
    assert [f["code"] for f in reading_check.check(settings)] == ["data.leave_out"]
    half = replace(settings, leave_out="1-2")
    assert "2 of 8 rows" in reading_check.check(replace(half, bad_rows=0.2))[0]["text"]


def test_what_a_finding_is_about_can_be_left_out_as_it_says(tmp_path: Path, rows: list[Any]) -> None:
    rows[3]["output"] = "the key is ghp_" + "a1B2" * 9
    rows[30]["image"] = "cat.png"
    file = write_rows(tmp_path / "a.jsonl", rows)
    settings: dict[str, Any] = {"seq_len": 96, "held_out_fraction": 0.0, "is_look": True}
    found = codes(prepare(file, **settings))
    for code, named in (
        ("data.secrets", "4"), ("data.meaning", "31"), ("data.duplicates", "12"), ("data.short_answers", "20"), ("data.cut", "21"),
        ("data.ends_cut", "21"),
    ):  # fmt: skip
        assert found[code]["leave_out"] == named, code
        again = codes(prepare(file, leave_out=named, **settings))
        assert code not in again, code


def test_numbers_that_nobody_would_read_are_not_offered() -> None:
    assert doctor._short([5, 3, 4, 4, 9]) == "3-5, 9"
    assert doctor._short(np.arange(1, 1_000_001)) == "1-1000000"
    assert doctor._short(range(1, 2 * row_numbers.MOST_RANGES, 2)).count(",") == row_numbers.MOST_RANGES - 1
    assert doctor._short(range(1, 2 * row_numbers.MOST_RANGES + 2, 2)) == doctor._short([]) == ""


def test_all_rows_are_never_offered_to_be_left_out(tmp_path: Path) -> None:
    rows = [{"instruction": f"{n}?", "output": f"{n} {'word ' * 90}"} for n in range(1, 9)]
    found = codes(
        prepare(write_rows(tmp_path / "a.jsonl", rows), held_out_fraction=0.25, is_look=True, seq_len=96)
    )
    assert found["data.cut"]["count"] == 8
    assert not found["data.cut"]["leave_out"]


def test_a_held_out_file_is_named_by_its_own_rows(tmp_path: Path, rows: list[Any]) -> None:
    held = [{"instruction": f"held {n}", "output": f"out {n}"} for n in range(1, 5)]
    held[1]["output"] = ""
    held[2]["output"] = "the key is ghp_" + "a1B2" * 9
    own = str(write_rows(tmp_path / "held.jsonl", held))
    found = codes(prepare(write_rows(tmp_path / "a.jsonl", rows), held_out_path=own))
    secrets = found["data.secrets"]
    assert (list(secrets["rows"]), list(secrets["held_rows"]), secrets["leave_out"]) == ([], [3], "")
    bad = found["data.held_left_out"]
    assert (bad["text"], list(bad["held_rows"])) == (
        "1 row of the held-out file left out: its output is empty.",
        [2],
    )
    assert bad["grade"] == "look"


def test_they_are_shown_as_left_out_by_hand_and_not_written_to_the_clean_file(
    tmp_path: Path, rows: list[Any]
) -> None:
    prepared = prepare(write_rows(tmp_path / "a.jsonl", rows), leave_out="3, 8-10")
    inspector = inspection.Inspector(prepared, tiny_tokenizer())
    table = RowTable(inspector)
    listed = table.listed({"kind": "left_out"})["rows"]
    assert [(row["row"], row["problem"]) for row in listed] == [(number, BY_HAND) for number in LEFT]
    assert (inspector.row(3)["side"], inspector.row(3)["problem"]) == ("left_out", BY_HAND)
    assert table.row(3)["rendered"], "it is still shown as the model would be fed it"
    clean.write(prepared, str(tmp_path / "clean.jsonl"))
    kept = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kept == [
        row for number, row in enumerate(rows, 1) if number not in LEFT
    ]  # 12 repeats 8, which is gone


def test_a_resumed_run_is_told_that_other_rows_are_left_out() -> None:
    before = TrainingConfig()
    made = identity.made_with(before, {})
    (difference,) = identity.changed_settings(made, with_value(before, "data.leave_out", "3"))
    assert (difference.name, difference.words) == ("data.leave_out", 'data.leave_out was "" and is "3"')
    assert "other rows" in str(difference.consequence)


@pytest.mark.parametrize(("was", "now"), [("3, 8-10", "8-10,3"), ("3-4", "3, 4"), ("", "  "), ("5", "5-5")])
def test_another_spelling_of_the_same_rows_is_no_difference_to_a_checkpoint(was: str, now: str) -> None:
    before = with_value(TrainingConfig(), "data.leave_out", was)
    made = identity.made_with(before, {})
    assert identity.changed_settings(made, with_value(before, "data.leave_out", now)) == []
    (difference,) = identity.changed_settings(made, with_value(before, "data.leave_out", "7"))
    assert difference.words == f'data.leave_out was "{was}" and is "7"'


def test_what_is_noted_counts_only_rows_that_are_used(tmp_path: Path) -> None:
    """Keys that are not used, and notes of how rows were rendered."""
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "user", "content": f"Say {n}"},
                {"role": "assistant", "content": f"Here {n}"},
            ],
            "score": n,
        }
        for n in range(1, 13)
    ]
    rows[3]["messages"][1]["content"] = ""  # cannot be read
    for row in rows[5:8]:
        row["extra"] = "x"
        row["messages"][1]["tool_calls"] = [{"name": "tides", "arguments": {}}]
    for left, score, extra in (("", 11, 3), ("6-7, 12", 8, 1), ("6-8", 8, 0)):
        prepared = prepare(write_rows(tmp_path / "a.jsonl", rows), leave_out=left, held_out_fraction=0.2)
        wanted = {"score": score, "extra": extra}
        assert prepared.report.unused_keys == {key: count for key, count in wanted.items() if count}
        told = [f for f in prepared.report.findings if f["code"] == "data.rendering"]
        assert [f["count"] for f in told] == ([extra] if extra else [])
