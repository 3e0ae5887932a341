"""Held-out rows are looked at as training rows are: all of them, the worst, those that say something; of a file of their own
or a share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qlora_engine.data.inspection import HELD_OUT, Inspector, asked
from qlora_engine.data.row_table import RowTable
from qlora_engine.errors import EngineError
from tests.engine.data.test_doctor import prepare
from tests.support.tiny import instruction_rows, tiny_tokenizer, write_rows


@pytest.fixture
def own(tmp_path: Path) -> Inspector:
    """A held-out file: row 2 cannot be trained, row 3 is the longest, 4 stands in the dataset too."""
    rows = instruction_rows(20)
    held = [{"instruction": f"held {n}", "output": f"out {n}"} for n in range(1, 6)]
    held[1]["output"] = ""
    held[2]["output"] = "a needle " * 60
    held[3] = {"instruction": rows[4]["instruction"], "output": rows[4]["output"]}
    file = write_rows(tmp_path / "held.jsonl", held)
    prepared = prepare(
        write_rows(tmp_path / "a.jsonl", rows), seq_len=96, is_look=True, held_out_path=str(file)
    )
    return Inspector(prepared, tiny_tokenizer(), HELD_OUT)


def test_a_file_of_its_own_is_listed_whole_with_what_becomes_of_each_row(own: Inspector) -> None:
    table = RowTable(own)
    listed = table.listed({"kind": "all"})["rows"]
    assert [(row["row"], row["file"], row["side"]) for row in listed] == [
        (n, "held.jsonl", "left_out" if n == 2 else "held_out") for n in range(1, 6)
    ]
    assert listed[1]["problem"] == "its output is empty"
    totals = {kind: table.listed({"kind": kind})["total"] for kind in ("train", "held_out", "left_out")}
    assert totals == {"train": 0, "held_out": 4, "left_out": 1}
    row = table.row(3)
    assert "needle" in row["raw"]
    fed = own.prepared.held_out[own.prepared.held_out.numbers.tolist().index(3)]
    assert [t[1] for t in row["rendered"][0]["tokens"] if t[2] != "c"] == fed.input_ids
    with pytest.raises(EngineError, match="no row 6; the data has 5"):
        table.row(6)


def test_the_worst_of_a_file_of_its_own_come_first_and_are_searched(own: Inspector) -> None:
    table = RowTable(own)
    assert [row["row"] for row in table.listed({"kind": "longest", "count": 1})["rows"]] == [3]
    assert [row["row"] for row in table.listed({"kind": "most_cut"})["rows"]] == [3]
    assert own.worst("longest", 1)[0]["row"] == 3
    assert [row["row"] for row in table.listed({"search": "NEEDLE"})["rows"]] == [3]
    assert own.search("needle") == [3]
    assert replace(own, of="data").search("needle") == []
    assert [row["row"] for row in table.batch([2, 3])["rows"]] == [3]


def test_a_share_is_listed_searched_and_sorted_by_the_numbers_of_the_dataset(tmp_path: Path) -> None:
    rows = instruction_rows(40)
    prepared = prepare(write_rows(tmp_path / "a.jsonl", rows), held_out_fraction=0.25)
    held = sorted(prepared.held_out.numbers.tolist())
    table = RowTable(Inspector(prepared, tiny_tokenizer(), HELD_OUT))
    assert [row["row"] for row in table.listed({"kind": "all"})["rows"]] == held
    assert {row["side"] for row in table.listed({"kind": "all"})["rows"]} == {"held_out"}
    assert sorted(row["row"] for row in table.listed({"kind": "longest"})["rows"]) == held
    assert table.listed({"kind": "train"})["total"] == table.listed({"kind": "left_out"})["total"] == 0
    wanted = rows[held[0] - 1]["instruction"]
    trained = rows[prepared.whole.numbers.tolist()[0] - 1]["instruction"]
    found = [row["row"] for row in table.listed({"search": wanted})["rows"]]
    assert found == [n for n in held if rows[n - 1]["instruction"].startswith(wanted)]
    assert held[0] in found
    assert not [n for n in table.inspector.search(trained) if n not in held]


def test_a_report_answers_about_the_rows_that_it_is_asked_of(own: Inspector) -> None:
    ask = {"of": "held_out", "numbers": [3], "list": "left_out", "worst": "longest", "search": "needle"}
    found = asked(replace(own, of="data"), ask, lambda: None)
    assert (found["numbers"][0]["file"], found["numbers"][0]["side"]) == ("held.jsonl", "held_out")
    assert [row["row"] for row in found["list"]["rows"]] == [2]
    assert (found["worst"][0]["row"], found["search"]["numbers"]) == (3, [3])
    assert asked(own, {"numbers": [3]}, lambda: None)["numbers"][0]["file"] == "a.jsonl"
    with pytest.raises(EngineError, match="no rows of 'held'"):
        asked(own, {"of": "held", "numbers": [3]}, lambda: None)
