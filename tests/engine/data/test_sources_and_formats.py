"""Reading rows: every kind of file, every format, every way to be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from qlora_engine.config import DataSettings
from qlora_engine.data import oasst
from qlora_engine.data.formats import RowProblem, detect, read_row
from qlora_engine.data.sources import load_rows, read_path
from qlora_engine.errors import EngineError

ROWS = [{"instruction": "a", "output": "b"}, {"instruction": "c ü", "output": "d"}]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


def as_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(ROWS)),
        ("b.json", json.dumps({"data": ROWS})),
        ("c.json", as_lines(ROWS)),
        ("d.jsonl", as_lines(ROWS)),
        ("e.jsonl", "\n" + as_lines(ROWS) + "\n\n"),
        ("f.csv", "instruction,output\na,b\nc ü,d\n"),
        ("g.tsv", "instruction\toutput\na\tb\nc ü\td\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    assert read_path(write(tmp_path / name, text, encoding)).rows == ROWS


def test_parquet(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert read_path(tmp_path / "a.parquet").rows == ROWS


def test_text_is_read_by_paragraph(tmp_path: Path) -> None:
    rows = read_path(write(tmp_path / "a.txt", "one\nstill one\n\n\ntwo\n")).rows
    assert rows == [{"text": "one\nstill one"}, {"text": "two"}]


def test_a_folder_is_read_in_order(tmp_path: Path) -> None:
    write(tmp_path / "2.jsonl", as_lines(ROWS[1:]))
    write(tmp_path / "1.jsonl", as_lines(ROWS[:1]))
    write(tmp_path / "notes.pdf", "x")
    assert read_path(tmp_path).rows == ROWS


def test_a_newline_inside_a_csv_value_is_kept(tmp_path: Path) -> None:
    rows = read_path(write(tmp_path / "a.csv", 'instruction,output\n"a\nb",c\n')).rows
    assert rows == [{"instruction": "a\nb", "output": "c"}]


BROKEN = {
    "line 2: broken JSON": ("a.jsonl", '{"a": 1}\n{"a": \n'),
    "line 3: broken JSON": ("a.json", '[{"a": 1},\n{"b": 2},\n{"c": }]'),
    "a row must be an object": ("a.jsonl", "[1, 2]\n"),
    "no list of rows": ("a.json", "17"),
    "more values than columns": ("a.csv", "a,b\n1,2,3\n"),
    "not a whole Parquet file": ("a.parquet", "PAR1 nonsense"),
    "not read": ("a.docx", "x"),
    "has no rows": ("a.jsonl", "\n\n"),
}


@pytest.mark.parametrize("words", sorted(BROKEN))
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, words: str) -> None:
    name, text = BROKEN[words]
    with pytest.raises(EngineError, match=words) as caught:
        load_rows(DataSettings(path=str(write(tmp_path / name, text))))
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_bytes_that_are_no_text_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\xff\xfe')
    with pytest.raises(EngineError, match="line 2: not UTF-8"):
        read_path(tmp_path / "a.jsonl")


@pytest.mark.parametrize("path", ["/no/such/file.json", "./missing.csv", "nothing"])
def test_a_missing_file_is_said(path: str) -> None:
    with pytest.raises(EngineError, match="there is no file"):
        load_rows(DataSettings(path=path))


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    one = read_path(write(tmp_path / "a.jsonl", as_lines(ROWS)))
    two = read_path(write(tmp_path / "b.jsonl", as_lines(ROWS)))
    three = read_path(write(tmp_path / "c.jsonl", as_lines(ROWS[:1])))
    assert one.sha256 == two.sha256 != three.sha256


@given(
    st.lists(
        st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none(), min_size=1), min_size=1
    )
)
def test_jsonl_round_trips(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    file = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    write(file, as_lines(rows))
    assert read_path(file).rows == rows


TALK = [("user", "hi"), ("assistant", "hello")]
FORMATS: dict[str, list[dict[str, Any]]] = {
    "alpaca": [{"instruction": "hi", "input": "", "output": "hello"}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}],
    "messages": [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    ],
    "prompt_completion": [{"prompt": "hi", "completion": "hello"}],
    "oasst": [{"text": "### Human: hi\n### Assistant: hello"}],
}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_formats_are_detected_and_mean_the_same(name: str) -> None:
    detection = detect(FORMATS[name], DataSettings())
    assert detection.format == name
    assert detection.why
    example = read_row(FORMATS[name][0], 1, detection)
    assert [(m.role, m.text) for m in example.messages] == TALK


def test_plain_text_is_detected_last() -> None:
    detection = detect([{"text": "some prose"}], DataSettings())
    assert detection.format == "text"
    assert read_row({"text": "some prose"}, 1, detection).text == "some prose"


def test_the_input_of_alpaca_is_part_of_the_question() -> None:
    row = {"instruction": "Add", "input": "2 and 3", "output": "5"}
    example = read_row(row, 1, detect([row], DataSettings()))
    assert example.messages[0].text == "Add\n\n2 and 3"


def test_history_and_system_of_alpaca_are_kept() -> None:
    row = {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "s"}
    roles = [m.role for m in read_row(row, 1, detect([row], DataSettings())).messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]


def test_columns_can_be_mapped() -> None:
    row = {"frage": "hi", "antwort": "hello"}
    settings = DataSettings(columns={"instruction": "frage", "output": "antwort"})
    detection = detect([row], settings)
    assert [m.text for m in read_row(row, 1, detection).messages] == ["hi", "hello"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (DataSettings(columns={"instruction": "frag"}, format="alpaca"), "did you mean 'frage'"),
        (DataSettings(columns={"instructin": "frage"}, format="alpaca"), "did you mean 'instruction'"),
        (DataSettings(format="alpaca"), "needs a column for 'instruction'"),
        (DataSettings(), "fit no known format"),
    ],
)
def test_wrong_columns_get_a_sentence(settings: DataSettings, words: str) -> None:
    with pytest.raises(EngineError) as caught:
        detect([{"frage": "hi", "antwort": "hello"}], settings)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "a", "output": ""}, "output is empty"),
        ({"instruction": "a", "output": None}, "output is missing"),
        ({"instruction": " ", "output": "b"}, "instruction is empty"),
        ({"instruction": "a", "output": ["b"]}, "output is missing"),
    ],
)
def test_a_bad_row_says_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowProblem, match=reason):
        read_row(row, 1, detect([{"instruction": "a", "output": "b"}], DataSettings()))


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([{"role": "user", "content": "a"}], "no answer"),
        ([{"role": "assistant", "content": "a"}], "question is empty"),
        ([{"role": "usr", "content": "a"}], "unknown role 'usr'"),
        ([{"role": "user"}], "no text"),
        ([], "no conversation"),
        ("text", "not a list"),
    ],
)
def test_a_conversation_that_is_none_says_why(turns: Any, reason: str) -> None:
    detection = detect(FORMATS["messages"], DataSettings())
    with pytest.raises(RowProblem, match=reason):
        read_row({"messages": turns}, 1, detection)


def test_message_trees_become_the_best_ranked_conversations() -> None:
    def message(number: str, parent: str | None, role: str, rank: int | None = None) -> dict[str, Any]:
        return {"message_id": number, "parent_id": parent, "role": role, "text": number, "rank": rank}

    rows = [
        message("q", None, "prompter"), message("bad", "q", "assistant", 1), message("good", "q", "assistant", 0),
        message("more", "good", "prompter"),
    ]  # fmt: skip
    assert oasst.is_message_tree(rows)
    (conversation,) = oasst.conversations(rows)
    assert [turn["content"] for turn in conversation["messages"]] == ["q", "good"]
    detection = detect([conversation], DataSettings())
    assert read_row(conversation, 1, detection).messages[0].role == "user"
