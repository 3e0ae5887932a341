"""Conversations written out as one text, as rounds, as lists of texts; questions answered by calls; lists beside the rows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_engine.config import DataSettings
from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.formats import detect, read_row, transcript
from qlora_engine.data.sources.store import open_store

TURNS = [
    ("system", "Be kind"),
    ("user", "hi\n\nthere"),
    ("assistant", "hello"),
    ("user", "more"),
    ("assistant", "yes"),
]
LLAMA_3 = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
WRITTEN = {
    "ChatML": "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in TURNS),
    "Llama 3": "<|begin_of_text|>" + "".join(LLAMA_3.format(*turn) for turn in TURNS),
    "Llama 2": "<s>[INST] <<SYS>>\nBe kind\n<</SYS>>\n\nhi\n\nthere [/INST] hello </s><s>[INST] more [/INST] yes </s>",
    "Zephyr": "".join(f"<|{role}|>\n{text}</s>\n" for role, text in TURNS),
    "Vicuna": "Be kind USER: hi\n\nthere ASSISTANT: hello</s>USER: more ASSISTANT: yes</s>",
    "names": "System: Be kind\n\nHuman: hi\n\nthere\n\nAssistant: hello\n\nHuman: more\n\nAssistant: yes",
}


def read(rows: list[dict[str, Any]], **settings: Any) -> tuple[str, list[tuple[str, str]]]:
    """The format, and the first row's turns."""
    detection = detect(rows, DataSettings(**settings))
    return detection.format, [(m.role, m.text) for m in read_row(rows[0], 1, detection).messages]


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_turns_of_every_usual_way_of_writing_are_read(name: str) -> None:
    assert read([{"text": WRITTEN[name]}] * 3) == ("transcript", TURNS)


def test_gemma_has_no_system_turn() -> None:
    text = "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nhello<end_of_turn>\n"
    assert read([{"text": text}]) == ("transcript", [("user", "hi"), ("assistant", "hello")])


@pytest.mark.parametrize(
    "texts",
    [
        ["Human: hi\nAssistant: hello", "Once there was a user: he asked."],
        ["He said: hello. The user: nobody."],
        ["User: nobody answers this"],
        ["Assistant: nobody asked this"],
        ["A preface.\nHuman: hi\nAssistant: hello"],
        [WRITTEN["ChatML"], WRITTEN["Llama 3"]],
    ],
)
def test_texts_that_are_no_conversations_stay_texts(texts: list[str]) -> None:
    assert detect([{"text": text} for text in texts], DataSettings()).format == "text"


def test_a_row_that_is_none_says_so() -> None:
    detection = detect([{"text": WRITTEN["names"]}], DataSettings())
    with pytest.raises(RowProblem, match="no marked turns"):
        read_row({"text": "prose"}, 1, detection)


def test_a_person_may_train_them_as_text() -> None:
    rows = [{"text": WRITTEN["ChatML"]}]
    assert read_row(rows[0], 1, detect(rows, DataSettings(format="text"))).text == WRITTEN["ChatML"]


def test_calls_between_quotes_and_their_results_are_read() -> None:
    call = '<functioncall> {"name": "f", "arguments": \'{"a": "it\'\'s"}\'} <|endoftext|>'
    row = {
        "system": "SYSTEM: You have f.",
        "chat": f"USER: do f\n\n\nASSISTANT: {call}\n\n\nFUNCTION RESPONSE: 1\n\n\nASSISTANT: done <|endoftext|>",
    }
    messages = read_row(row, 1, detect([row], DataSettings())).messages
    assert [m.role for m in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[0].text == "You have f."
    assert (messages[2].calls[0].name, messages[2].calls[0].arguments) == ("f", {"a": "it''s"})


def test_what_only_looks_like_a_call_is_text() -> None:
    row = {"text": "Human: hi\nAssistant: <functioncall> nothing"}
    assert read([row])[1][-1] == ("assistant", "<functioncall> nothing")


@pytest.mark.parametrize(
    "piece", [" ", "\n", "<s>", "</s> ", "'{", "[INST]", "USER: ", "<<SYS>>", "Human:\n"]
)
def test_no_text_takes_long(piece: str) -> None:
    text = "Human: hi\nAssistant: <functioncall> " + piece * 50_000 + "x"
    began = time.process_time()
    if transcript.style_of(text) is not None:
        transcript.read_text(text)
    assert time.process_time() - began < 5


@given(
    st.lists(
        st.text(st.characters(exclude_characters="<|>[]:", exclude_categories=["Cs"]), min_size=1), min_size=2
    )
)
def test_every_text_between_marks_is_kept(texts: list[str]) -> None:
    roles = ["user" if number % 2 == 0 else "assistant" for number in range(len(texts))]
    written = "".join(f"<|im_start|>{r}\n{t}<|im_end|>\n" for r, t in zip(roles, texts, strict=True))
    found = transcript.read_text(written)
    assert [m.role for m in found] == roles
    assert [m.text for m in found] == [text.strip() for text in texts]


def test_a_wanted_answer_may_be_the_whole_conversation() -> None:
    row = {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}
    assert read([row], preference="chosen")[1] == [("user", "q"), ("assistant", "good")]
    with_prompt = {"prompt": "q", "chosen": "Human: is a word\nAssistant: too", "rejected": "b"}
    assert read([with_prompt], preference="chosen")[1][1] == ("assistant", with_prompt["chosen"])


def test_what_stands_before_the_first_mark_is_not_lost() -> None:
    text = "Be kind\n### Human: hi### Assistant: hello"
    assert read([{"text": text}]) == (
        "oasst",
        [("system", "Be kind"), ("user", "hi"), ("assistant", "hello")],
    )


ROUNDS = [
    {"conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]},
    {"conversation": [{"system": "", "input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
    {"data": ["a", "b", "c", "d"]},
]


@pytest.mark.parametrize("row", ROUNDS)
def test_rounds_and_lists_of_texts_are_conversations(row: dict[str, Any]) -> None:
    format_name, found = read([row])
    assert format_name == "messages"
    assert found == [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]


def test_lists_of_other_things_are_none() -> None:
    rows = [{"data": ["a", "b"], "text": "prose"}, {"data": [1, 2], "text": "prose"}]
    assert detect(rows, DataSettings()).format == "text"


TOOL = {"name": "f", "parameters": {"a": {"type": "str"}, "n": {"type": "int, optional", "description": "d"}}}


@pytest.mark.parametrize("as_text", [True, False])
def test_questions_answered_by_calls(as_text: bool) -> None:
    calls = [{"name": "f", "arguments": {"a": "x"}}]
    row = {
        "query": "do f",
        "tools": json.dumps([TOOL]) if as_text else [TOOL],
        "answers": json.dumps(calls) if as_text else calls,
    }
    detection = detect([row], DataSettings())
    found = read_row(row, 1, detection)
    assert detection.format == "tool_questions"
    assert [(c.name, c.arguments) for c in found.messages[1].calls] == [("f", {"a": "x"})]
    assert found.tools[0]["function"]["parameters"] == {
        "type": "object",
        "properties": {"a": {"type": "string"}, "n": {"type": "integer", "description": "d"}},
        "required": ["a"],
    }


def test_an_answer_in_words_beside_tools_is_no_call() -> None:
    row = {"instruction": "do f", "tools": [TOOL], "output": "I did."}
    assert detect([row], DataSettings()).format == "alpaca"


@pytest.mark.parametrize("order", [("train", "test", "version"), ("version", "train", "test")])
def test_a_list_beside_the_rows_is_named(tmp_path: Path, order: tuple[str, ...]) -> None:
    parts = {"train": [{"text": "a"}, {"text": "b"}], "test": [{"text": "c"}], "version": "1"}
    file = tmp_path / "parts.json"
    file.write_text(json.dumps({key: parts[key] for key in order}), encoding="utf-8")
    store = open_store(DataSettings(path=str(file)))
    assert [row["text"] for block in store.blocks(8) for _, row in block.rows()] == ["a", "b"]
    assert any("has 'test', a list of 1, beside 'train', which is not read" in note for note in store.notes)
    assert any("has 'version' beside 'train'" in note for note in store.notes)


def test_a_label_is_not_called_what_it_may_not_be() -> None:
    row = {"text": "a film to forget", "label": 1}
    with pytest.raises(RowProblem, match="may be its class, or say whether its answer is wanted"):
        read_row(row, 1, detect([row], DataSettings()))
    mapped = DataSettings(columns={"prompt": "text", "completion": "label"}, format="prompt_completion")
    assert [m.text for m in read_row(row, 1, detect([row], mapped)).messages] == ["a film to forget", "1"]
