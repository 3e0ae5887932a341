"""Rows in pages, one row in full, and the policies on reasoning: what the window asks of data without reading them anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.control import Control
from qlora_engine.data import desk, policy_example, reporting
from qlora_engine.data.row_fates import KINDS
from qlora_engine.data.row_table import HEAD, RowTable
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.events import DataAnswered, RunFinished
from qlora_engine.jobs import DataDeskJob
from tests.engine.data.test_doctor import prepare
from tests.support.tiny import CHATML, instruction_rows, tiny_tokenizer, write_rows

THOUGHT = "('<think>' + message.reasoning_content + '</think>' if message.reasoning_content else '')"
THINKING = CHATML.replace("message['content']", f"{THOUGHT} + message['content']")


@pytest.fixture
def table(tmp_path: Path) -> RowTable:
    rows = instruction_rows(40)
    rows[6] = {"instruction": "nothing", "output": ""}
    rows[9]["output"] = "a needle " * 60
    from qlora_engine.data.inspection import Inspector

    return RowTable(
        Inspector(prepare(write_rows(tmp_path / "a.jsonl", rows), seq_len=96, is_look=True), tiny_tokenizer())
    )


def test_every_row_is_listed_once_with_what_became_of_it(table: RowTable) -> None:
    everything = table.listed({"kind": "all", "first": 0, "count": 100})
    assert [row["row"] for row in everything["rows"]] == list(range(1, 41))
    sides = {
        kind: table.listed({"kind": kind, "count": 100})["total"]
        for kind in ("train", "held_out", "left_out")
    }
    report = table.inspector.prepared.report
    assert sides == {
        "train": report.train_rows,
        "held_out": report.held_out_rows,
        "left_out": report.rows_dropped,
    }
    left = everything["rows"][6]
    assert (left["side"], left["problem"], left["tokens"]) == ("left_out", "its output is empty", None)
    page = table.listed({"kind": "all", "first": 38, "count": 10})
    assert [row["row"] for row in page["rows"]] == [39, 40]
    assert page["total"] == 40


def test_the_worst_rows_come_first_and_search_finds_the_row(table: RowTable) -> None:
    assert table.listed({"kind": "longest", "count": 1})["rows"][0]["row"] == 10
    assert table.listed({"kind": "most_cut", "count": 5})["rows"][0]["row"] == 10
    lengths = [row["trained"] for row in table.listed({"kind": "fewest_trained", "count": 40})["rows"]]
    assert lengths[0] == min(lengths)
    assert [row["row"] for row in table.listed({"search": "NEEDLE"})["rows"]] == [10]
    with pytest.raises(EngineError, match="no rows 'shortest'"):
        table.listed({"kind": "shortest"})


def test_a_row_is_shown_as_it_is_fed_with_the_role_of_every_token(table: RowTable) -> None:
    (shown,) = table.row(3)["rendered"]
    fed = table.inspector.prepared.whole
    place = fed.numbers.tolist().index(3) if 3 in fed.numbers else None
    assert place is not None
    assert [token[1] for token in shown["tokens"]] == fed[place].input_ids
    assert [token[2] == "t" for token in shown["tokens"]] == fed[place].trained
    roles = {role: "".join(t[0] for t in shown["tokens"] if t[4] == role) for role in ("user", "assistant")}
    row = instruction_rows(40)[2]
    assert row["instruction"] in roles["user"]
    assert row["output"] == roles["assistant"]
    cut = table.row(10)["rendered"][0]
    assert cut["cut"] > 0
    assert [t[2] for t in cut["tokens"]].count("c") == cut["cut"]


def test_a_batch_is_padded_to_its_longest_row(table: RowTable) -> None:
    found = table.batch([1, 7, 10])
    assert [row["row"] for row in found["rows"]] == [1, 10]  # 7 is left out
    assert found["width"] == 96
    assert {len(row["tokens"]) for row in found["rows"]} == {96}
    assert found["rows"][0]["tokens"][-1][2] == "p"


def test_a_very_long_row_is_shown_in_part_and_the_rest_is_counted(tmp_path: Path) -> None:
    from qlora_engine.data.inspection import Inspector

    rows = [{"instruction": "count", "output": "0123456789 " * 2000}]
    prepared = prepare(write_rows(tmp_path / "a.jsonl", rows * 3), is_look=True)
    (shown,) = RowTable(Inspector(prepared, tiny_tokenizer())).row(1)["rendered"]
    assert shown["hidden"] > 0
    assert shown["length"] == shown["hidden"] + len(shown["tokens"])
    assert shown["tokens"][HEAD][3] == HEAD + shown["hidden"]


def test_each_policy_on_reasoning_is_shown_and_said(tmp_path: Path) -> None:
    from qlora_engine.data.inspection import Inspector

    file = write_rows(tmp_path / "a.jsonl", instruction_rows(4))
    inspector = Inspector(prepare(file, is_look=True), tiny_tokenizer(THINKING))
    found = policy_example.examples(inspector, "auto")
    words = {name: example["words"] for name, example in found["policies"].items()}
    assert (
        words["train"]
        == "Thoughts before the last answer are trained. Thoughts of earlier turns are trained."
    )
    assert "seen, not trained" in words["context"]
    assert words["remove"].startswith("Thoughts before the last answer are left out")
    assert not found["is_own"]


def test_hub_data_are_previewed_once_they_were_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_engine.data.inspection import Inspector

    prepared = prepare(write_rows(tmp_path / "a.jsonl", instruction_rows(12)), is_look=True)
    monkeypatch.setattr(reporting, "opened", lambda *_: Inspector(prepared, tiny_tokenizer()))
    asked = desk.Desk(Control())
    config = config_io.to_dict(with_value(TrainingConfig(), "data.path", "org/set"))

    def preview(**ask: Any) -> dict[str, Any]:
        return asked.answer({"topic": "preview", "config": config, "ask": ask}, lambda _: None)

    with pytest.raises(EngineError, match="on the hub"):
        preview()
    found = preview(is_read=True)
    assert (found["format"], found["columns"], len(found["rows"])) == (
        "alpaca",
        ["instruction", "input", "output"],
        12,
    )
    assert found["bytes"] == (tmp_path / "a.jsonl").stat().st_size - 1  # without the last line end
    config = config_io.to_dict(with_value(config_io.from_dict(config), "data.columns", {"instruction": "output", "output": "instruction"}))  # fmt: skip
    assert preview()["detection"]["columns"]["output"] == "instruction"  # also before they are read anew


def test_an_empty_block_before_an_answer_without_thoughts_is_said(tmp_path: Path) -> None:
    from qlora_engine.data.inspection import Inspector

    empty = THINKING.replace("else '')", "else '<think></think>' if message.role == 'assistant' else '')")
    inspector = Inspector(
        prepare(write_rows(tmp_path / "a.jsonl", instruction_rows(4)), is_look=True), tiny_tokenizer(empty)
    )
    words = policy_example.examples(inspector, "auto")["policies"]["train"]["words"]
    assert "Before an answer without thoughts the template puts an empty block, which is " in words


def test_long_work_ends_when_other_data_are_asked_about(tmp_path: Path) -> None:
    control = Control()
    inbox = desk.Inbox(control)
    config = config_io.to_dict(TrainingConfig())
    other = config_io.to_dict(with_value(TrainingConfig(), "data.seq_len", 64))
    slower = config_io.to_dict(with_value(TrainingConfig(), "lora.rank", 4))
    for topic, about in (("list", config), ("row", config), ("check", slower)):
        control.handle({"command": "data", "request": 1, "topic": topic, "config": about, "ask": {}})
    assert (inbox.next_command() or {})["topic"] == "list"
    inbox.check()  # other questions about the same data wait
    control.handle({"command": "data", "request": 2, "topic": "preview", "config": other, "ask": {}})
    with pytest.raises(Cancelled):
        inbox.check()


def test_the_desk_answers_the_newest_question_of_a_topic_and_says_what_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_engine.data.inspection import Inspector

    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    file = write_rows(tmp_path / "a.jsonl", instruction_rows(12))
    inspector = Inspector(prepare(file, is_look=True), tiny_tokenizer())
    monkeypatch.setattr(reporting, "opened", lambda *_: inspector)
    config = config_io.to_dict(with_value(TrainingConfig(), "data.path", str(file)))
    control = Control()
    asked: list[tuple[str, dict[str, Any]]] = [
        ("list", {"kind": KINDS[0]}), ("list", {"kind": "train", "count": 2}), ("preview", {}), ("row", {"number": 99}), ("check", {}),
        ("batch", {"of": "held_out", "numbers": list(range(1, 13))}),
    ]  # fmt: skip
    for number, (topic, ask) in enumerate(asked):
        control.handle({"command": "data", "request": number, "topic": topic, "config": config, "ask": ask})

    def answers() -> Iterator[DataAnswered]:
        for event in desk.desk_job(DataDeskJob(), control):
            if isinstance(event, DataAnswered):
                yield event
                if event.request == 5:
                    control.request_stop()
            else:
                assert isinstance(event, RunFinished)

    found = {event.request: event for event in answers()}
    assert sorted(found) == [1, 2, 3, 4, 5]  # 0 was asked anew as 1
    assert len(found[1].answer["rows"]) == 2
    assert found[2].answer["format"] == "alpaca"
    assert found[3].error["message"] == "there is no row 99; the data has 12"
    assert found[4].answer == {"findings": []}
    assert len(found[5].answer["rows"]) == 12
