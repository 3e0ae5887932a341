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
from qlora_engine.data.sources import BadRow, RowStore, open_store
from qlora_engine.errors import EngineError

ROWS = [{"instruction": "a", "output": "b"}, {"instruction": "c ü", "output": "d"}]


def read_path(path: Path, **settings: Any) -> RowStore:
    return open_store(DataSettings(path=str(path), **settings))


def all_rows(store: RowStore) -> list[Any]:
    return [row for block in store.blocks(2) for _, row in block.rows()]


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
    assert all_rows(read_path(write(tmp_path / name, text, encoding))) == ROWS


def test_parquet(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert all_rows(read_path(tmp_path / "a.parquet")) == ROWS


def test_a_text_is_a_document(tmp_path: Path) -> None:
    text = "one\nstill one\n\n\ntwo\n"
    assert all_rows(read_path(write(tmp_path / "a.txt", text))) == [{"text": text}]


def test_a_folder_is_read_in_order(tmp_path: Path) -> None:
    write(tmp_path / "2.jsonl", as_lines(ROWS[1:]))
    write(tmp_path / "1.jsonl", as_lines(ROWS[:1]))
    write(tmp_path / "notes.pdf", "x")
    assert all_rows(read_path(tmp_path)) == ROWS


def test_a_newline_inside_a_csv_value_is_kept(tmp_path: Path) -> None:
    rows = all_rows(read_path(write(tmp_path / "a.csv", 'instruction,output\n"a\nb",c\n')))
    assert rows == [{"instruction": "a\nb", "output": "c"}]


BROKEN = {
    "no list of rows": ("a.json", "17"),
    "not a whole Parquet file": ("a.parquet", "PAR1 nonsense"),
    "not read": ("a.docx", "x"),
    "has no rows": ("a.jsonl", "\n\n"),
    "two columns named 'a'": ("a.csv", "a,a\n1,2\n"),
    "not a whole zip archive": ("a.zip", "PK nonsense"),
}


@pytest.mark.parametrize("words", sorted(BROKEN))
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, words: str) -> None:
    name, text = BROKEN[words]
    with pytest.raises(EngineError, match=words) as caught:
        read_path(write(tmp_path / name, text))
    assert caught.value.exit_code == 2
    assert caught.value.hint


BAD_ROWS = {
    "it ends in the middle": ("a.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\n'),
    "Expecting value": ("a.json", '[{"a": 1},\n{"a": },\n{"a": 3}]'),
    "must be an object, not a list": ("b.jsonl", '{"a": 1}\n[1, 2]\n{"a": 3}\n'),
    "4 values for 2 columns": ("a.csv", "a,b\n1,\n1,2,3,4\n3,\n"),
}


@pytest.mark.parametrize("words", sorted(BAD_ROWS))
def test_a_row_that_cannot_be_read_is_left_out_alone(tmp_path: Path, words: str) -> None:
    name, text = BAD_ROWS[words]
    good, bad, last = all_rows(read_path(write(tmp_path / name, text)))
    assert isinstance(bad, BadRow)
    assert words.split(" ", 1)[1] in bad.reason
    assert isinstance(good, dict)
    assert isinstance(last, dict)
    assert str(last["a"]) == "3"


@pytest.mark.parametrize("path", ["/no/such/file.json", "./missing.csv", "nothing"])
def test_a_missing_file_is_said(path: str) -> None:
    with pytest.raises(EngineError, match="there is no file"):
        open_store(DataSettings(path=path))


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
    assert all_rows(read_path(file)) == rows


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
