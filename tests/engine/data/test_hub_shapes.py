"""The shapes in which sets come today: what is trained of each, what is said, and what a person must decide first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import data
from qlora_engine.config import DataSettings
from qlora_engine.data.formats import detect, read_row
from qlora_engine.data.preview import preview
from qlora_engine.errors import EngineError
from tests.engine.data.test_kinds_of_files import USUAL, Kind, spans_of, stored
from tests.support.tiny import tiny_tokenizer, write_rows

U, A = "user", "assistant"


def turns(
    *said: str, keys: tuple[str, str] = ("role", "content"), roles: tuple[str, str] = (U, A)
) -> list[dict[str, str]]:
    return [{keys[0]: roles[n % 2], keys[1]: text} for n, text in enumerate(said)]


SHARED: dict[str, Any] = {"keys": ("from", "value"), "roles": ("human", "gpt")}
UNUSED = "data.unused_key"
SHAPES = {
    "dolly": Kind(
        [{"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada.", "category": "closed_qa"},
         {"instruction": "Why?", "context": "", "response": "For fun.", "category": "open_qa"}],
        ["Ada.", "For fun."], [UNUSED],
    ),
    "ultrachat": Kind([{"prompt": "Hi", "prompt_id": "a1", "messages": turns("Hi", "Hello.", "More", "Here.")}], ["Hello.|Here."], [UNUSED]),
    "ultrafeedback": Kind(
        [{"prompt": "Hi", "prompt_id": "a1", "chosen": turns("Hi", "Hello."), "rejected": turns("Hi", "No."), "messages": turns("Hi", "Hello."),
          "score_chosen": 8.0, "score_rejected": 2.0}],
        ["Hello."], ["blocks data.preference", UNUSED],
    ),
    "magpie": Kind(
        [{"uuid": "x", "model": "m", "gen_input_configs": {"temperature": 1.0}, "instruction": "Hi", "response": "Hello.",
          "conversations": turns("Hi", "Hello.", **SHARED), "task_category": "chat", "difficulty": "easy"}],
        ["Hello."], [UNUSED],
    ),
    "tulu": Kind([{"id": "t1", "messages": [{"role": "system", "content": "Be kind."}, *turns("Hi", "Hello.")], "source": "s"}], ["Hello."], [UNUSED]),
    "thoughts between marks": Kind(
        [{"system": "Think.", "conversations": turns("6 * 7?", "<|begin_of_thought|>\n\nsix sevens\n\n<|end_of_thought|>\n\n"
          "<|begin_of_solution|>\n\n42\n\n<|end_of_solution|>", keys=("from", "value"))}],
        ["<think>\nsix sevens\n</think>\n\n42"],
    ),
    "calls as texts": Kind(
        [{"id": 1, "query": "Tides?", "answers": json.dumps([{"name": "tides", "arguments": {"port": "Brest"}}]),
          "tools": json.dumps([{"name": "tides", "description": "d", "parameters": {"port": {"type": "str", "description": "p"}}}])}],
        ['<tool_call>\n{"name": "tides", "arguments": {"port": "Brest"}}\n</tool_call>'], [UNUSED, "data.rendering"],
    ),
    "gsm8k": Kind([{"question": "2 + 2?", "answer": "It is <<2+2=4>>4.\n#### 4"}], ["It is <<2+2=4>>4.\n#### 4"]),
    "squad": Kind(
        [{"id": "s", "title": "T", "context": "Ada wrote it.", "question": "Who?", "answers": {"text": ["Ada", "Ada L."], "answer_start": [0, 0]}},
         {"id": "u", "title": "T", "context": "Ada wrote it.", "question": "When?", "answers": {"text": [], "answer_start": []}}],
        ["Ada"], [UNUSED, "data.left_out"], settings={"bad_rows": 0.6},
    ),
    "code": Kind([{"problem": "Add.", "solution": "def add(a, b):\n    return a + b", "lang": "python"}], ["def add(a, b):\n    return a + b"], [UNUSED]),
    "system in a column": Kind([{"system_prompt": "Be kind.", "messages": turns("Hi", "Hello.", "More", "Here.")}], ["Hello.|Here."]),
    **{
        f"roles {asks} and {says}": Kind([{"messages": turns("Hi", "Hello.", roles=(asks, says))}], ["Hello."])
        for asks, says in (
            ("usuario", "asistente"), ("Benutzer", "Assistent"), ("utilisateur", "assistant"), ("\u7528\u6237", "\u52a9\u624b"),
            ("\u043f\u043e\u043b\u044c\u0437\u043e\u0432\u0430\u0442\u0435\u043b\u044c", "\u0430\u0441\u0441\u0438\u0441\u0442\u0435\u043d\u0442"),
        )
    },
    "turns in a column of a column": Kind(
        [{"id": 1, "conversation": {"lang": "en", "messages": turns("Hi", "Hello.")}}], ["Hello."], [UNUSED]
    ),
    "turns in a list of one list": Kind([{"conversations": [turns("Hi", "Hello.", **SHARED)]}], ["Hello."]),
    "question and answer in a column": Kind([{"qa": {"question": "2 + 2?", "answer": "4"}, "url": "u"}], ["4"], [UNUSED]),
    "one answer a row, wanted or not": Kind(
        [{"prompt": "Hi", "completion": "Hello.", "label": True}, {"prompt": "Hi", "completion": "Go away.", "label": False}],
        ["Hello."], ["blocks data.marked"],
    ),
    "the wanted answers alone": Kind(
        [{"prompt": turns("Hi"), "completion": [{"role": A, "content": "Hello."}], "label": True},
         *({"prompt": turns("Hi"), "completion": [{"role": A, "content": f"Go {n}."}], "label": False} for n in range(8))],
        ["Hello."], ["data.unwanted"], settings={"preference": "chosen"},
    ),
    "wanted or not, as a table writes it": Kind(
        b"instruction,output,kto_tag\nHi,Hello.,True\nHi,Go away.,False\n", ["Hello."], ["blocks data.marked"], name="a.csv"
    ),
    "marks that are to be ignored": Kind(
        [{"prompt": "Hi", "completion": "Hello.", "label": True}, {"prompt": "Hi", "completion": "Go away.", "label": False}],
        ["Hello.", "Go away."], [UNUSED], settings={"ignore": ("rejected",)},
    ),
    "languages": Kind(
        [{"id": "1", "translation": {"en": "Good day", "fr": "Bonjour", "de": "Guten Tag"}}], ["Bonjour"], [UNUSED],
        settings={"columns": {"prompt": "translation.en", "completion": "translation.fr"}},
    ),
    "the first of a list of objects": Kind(
        [{"ask": {"text": "Who?"}, "replies": [{"body": {"text": "Ada."}}, {"body": {"text": "Bob."}}]}], ["Ada."],
        settings={"columns": {"instruction": "ask.text", "output": "replies.body.text"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_what_becomes_of_a_shape(name: str, tmp_path: Path) -> None:
    kind, tokenizer = SHAPES[name], tiny_tokenizer()
    prepared = data.prepare(stored(tmp_path, kind), tokenizer, seed=1, is_look=True)
    rows = sorted([*prepared.train, *prepared.held_out], key=lambda row: row.source_row)
    assert [spans_of(row, tokenizer) for row in rows] == kind.trained
    told = {("blocks " if f["grade"] == "blocks" else "") + f["code"] for f in prepared.report.findings}
    assert told - USUAL == set(kind.findings)


def test_unwanted_answers_are_counted_and_one_setting_leaves_them_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}", "completion": f"Here {n}", "label": n % 3 > 0} for n in range(12)]
    file = write_rows(tmp_path / "a.jsonl", rows)
    prepared = data.prepare(DataSettings(path=str(file)), tiny_tokenizer(), seed=1, is_look=True)
    (found,) = [f for f in prepared.report.findings if f["code"] == "data.marked"]
    assert (found["count"], found["rows"]) == (4, (1, 4, 7, 10))
    assert found["text"].startswith(
        "4 rows have an answer that is not wanted: its answer is marked as not wanted (label is false)"
    )
    assert found["repair"] == {"setting": "data.preference", "value": "chosen"}


def test_a_class_is_still_no_mark(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}", "completion": f"Here {n}", "label": n % 2} for n in range(6)]
    file = write_rows(tmp_path / "a.jsonl", rows)
    prepared = data.prepare(DataSettings(path=str(file)), tiny_tokenizer(), seed=1, is_look=True)
    (found,) = [f for f in prepared.report.findings if f["code"] == "data.meaning"]
    assert found["count"] == 6
    assert "may be its class" in found["text"]


def test_nested_columns_are_offered_and_named_where_nothing_fits(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"id": "1", "translation": {"en": "Good day", "fr": "Bonjour"}}])
    shown = preview(DataSettings(path=str(file)))
    assert shown["nested"] == ["translation.en", "translation.fr"]
    assert shown["format"] is None
    assert "translation.fr" in shown["problem"]
    assert '{prompt = "translation.en", completion = "translation.fr"}' in shown["hint"]
    wrong = DataSettings(path=str(file), format="prompt_completion", columns={"prompt": "translation.it"})
    with pytest.raises(EngineError, match=r"no column 'translation\.it'"):
        detect([{"translation": {"en": "a"}}], wrong)


def test_a_column_may_have_a_dot_in_its_name() -> None:
    row = {"q.text": "Who?", "a.text": "Ada."}
    found = detect([row], DataSettings(columns={"instruction": "q.text", "output": "a.text"}))
    assert [m.text for m in read_row(row, 1, found).messages] == ["Who?", "Ada."]
    assert found.nested == ()
