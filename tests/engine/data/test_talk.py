"""What rows mean: reasoning, calls, tools, weights, pairs, parts and roles; every key is used or named."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from qlora_engine.config import DataSettings
from qlora_engine.data.conversation import Conversation, Message, RowProblem, ToolCall
from qlora_engine.data.formats import detect, read_row, require_settled
from qlora_engine.data.policy import Policy
from qlora_engine.data.templates import choose
from qlora_engine.data.tokenize import TokenRow, tokenize
from qlora_engine.errors import EngineError
from tests.support.mechanisms import MECHANISMS
from tests.support.template_tokenizer import tokenizer_for

Row = dict[str, Any]
FIND = {
    "type": "function",
    "function": {"name": "find", "description": "Finds.", "parameters": {"type": "object"}},
}


def turn(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def chat(*turns: Row, **more: Any) -> Row:
    return {"messages": list(turns), **more}


def read(row: Row, **options: Any) -> Conversation:
    return read_row(row, 1, detect([row], DataSettings(**options)))


def problem(row: Row, **options: Any) -> str:
    with pytest.raises(RowProblem) as caught:
        read(row, **options)
    return caught.value.reason


def spans(conversation: Conversation, mechanism: str, policy: Policy | None = None) -> list[str]:
    """The trained texts of a row."""
    policy = policy or Policy()
    tokenizer = tokenizer_for(MECHANISMS[mechanism])
    (row,) = tokenize([conversation], tokenizer, choose(tokenizer, "auto", policy), policy)
    assert isinstance(row, TokenRow), row
    found: list[list[int]] = []
    for place, is_trained in enumerate(row.trained):
        if is_trained and (place == 0 or not row.trained[place - 1]):
            found.append([])
        if is_trained:
            found[-1].append(row.input_ids[place])
    return [str(tokenizer.decode(ids)) for ids in found]


# Reasoning


@pytest.mark.parametrize(
    "answer",
    [
        turn("assistant", "Six.", reasoning_content="2 * 3"),
        turn("assistant", "Six.", reasoning="2 * 3"),
        turn("assistant", "<think>\n2 * 3\n</think>\n\nSix."),
        turn("assistant", [{"type": "thinking", "thinking": "2 * 3"}, {"type": "text", "text": "Six."}]),
    ],
)
def test_reasoning_is_found_wherever_it_stands(answer: Row) -> None:
    found = read(chat(turn("user", "Twice three?"), answer)).messages[1]
    assert (found.reasoning, found.text) == ("2 * 3", "Six.")


@pytest.mark.parametrize(
    "answer",
    [
        turn("assistant", "The tag <think> opens one."), turn("assistant", "Six.", reasoning_content=""),
        turn("assistant", "Six.", reasoning_content=None), turn("assistant", "<think>never closed"),
        turn("assistant", "Write <think>x</think> so."),
    ],
)  # fmt: skip
def test_a_quoted_tag_is_text_and_empty_reasoning_is_none(answer: Row) -> None:
    found = read(chat(turn("user", "q"), answer)).messages[1]
    assert (found.reasoning, found.text) == (None, answer["content"])


def test_three_policies_train_three_different_spans() -> None:
    row = read(chat(turn("user", "q"), turn("assistant", "Six.", reasoning_content="2 * 3")))
    kind = "thoughts are cut from earlier turns"
    found = {p: spans(row, kind, Policy(reasoning=p)) for p in ("train", "context")}
    assert found == {"train": ["<think>\n2 * 3\n</think>\n\nSix.<|close|>"], "context": ["Six.<|close|>"]}
    removed = tokenizer_for(MECHANISMS[kind])
    policy = Policy(reasoning="remove")
    (gone,) = tokenize([row], removed, choose(removed, "auto", policy), policy)
    assert isinstance(gone, TokenRow)
    assert "2 * 3" not in gone.text
    assert spans(row, kind, policy) == ["Six.<|close|>"]


@pytest.mark.parametrize(("policy", "wanted"), [
    ("train", "<think>\n\n</think>\n\nSix.<|close|>"), ("context", "Six.<|close|>"), ("remove", "Six.<|close|>"),
])  # fmt: skip
def test_an_empty_thought_is_trained_or_not_by_the_policy(policy: str, wanted: str) -> None:
    row = read(chat(turn("user", "q"), turn("assistant", "Six.")))
    assert spans(row, "an empty thought before an answer without one", Policy(reasoning=policy)) == [wanted]


@pytest.mark.parametrize("kind", sorted(MECHANISMS))
@pytest.mark.parametrize("reasoning", ["train", "remove"])
def test_a_chat_is_asked_as_training_had_it(kind: str, reasoning: str) -> None:
    """What stands before a trained answer is what a chat renders; a template that opens a thought in its prompt does so
    before answers that have one."""
    from qlora_engine.data.templates import render

    policy = Policy(reasoning=reasoning)
    tokenizer = tokenizer_for(MECHANISMS[kind])
    template = choose(tokenizer, "auto", policy)
    talk = (Message("user", "qq"), Message("assistant", "aa", "thought" if "opens" in kind else None))
    (row,) = tokenize([Conversation(1, talk)], tokenizer, template, policy)
    assert isinstance(row, TokenRow)
    before = tokenizer.decode(row.input_ids[: row.trained.index(True)])
    assert render(tokenizer, template, talk[:1], is_prompt=True).rstrip(" ") == before.rstrip(" ")


# Tools


def calling(arguments: Any, **more: Any) -> Row:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": arguments}}
    return chat(
        turn("user", "Where is Ulm?"), turn("assistant", None, tool_calls=[call]),
        turn("tool", "on the Danube", tool_call_id="c1"), turn("assistant", "On the Danube."), **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "kind", [k for k in sorted(MECHANISMS) if "call" in k or "argument" in k or "result" in k]
)
def test_calls_are_trained_and_results_are_not(kind: str) -> None:
    trained = "".join(spans(read(calling({"town": "Ulmtown"}, tools=[FIND])), kind))
    assert "find" in trained
    assert "Ulmtown" in trained
    assert "On the Danube." in trained
    assert "on the Danube" not in trained
    assert "Finds." not in trained


TWO_CALLS = chat(
    turn("user", "Ulm and Ghent?"),
    turn("assistant", "", tool_calls=[
        {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"town": "Ulmtown"}'}},
        {"id": "c2", "type": "function", "function": {"name": "weigh", "arguments": {"town": "Ghenttown"}}},
    ]),
    turn("tool", "rain", tool_call_id="c1"), turn("tool", "sun", tool_call_id="c2"), turn("assistant", "Ulm."), tools=[FIND],
)  # fmt: skip


@pytest.mark.parametrize("kind", ["calls as JSON", "arguments one by one", "one marker closes every turn"])
def test_two_calls_of_one_turn_are_both_trained(kind: str) -> None:
    first, last = spans(read(TWO_CALLS), kind)
    assert all(word in first for word in ("find", "Ulmtown", "weigh", "Ghenttown"))
    assert last.startswith("Ulm.")
    assert "rain" not in first + last


def test_a_row_with_a_call_that_the_template_leaves_out_is_left_out() -> None:
    """Else a turn of one call would be trained where the data have two."""
    tokenizer = tokenizer_for(MECHANISMS["ids of nine letters"])
    (row,) = tokenize([read(TWO_CALLS)], tokenizer, choose(tokenizer, "auto"), Policy())
    assert isinstance(row, RowProblem)
    assert row.reason == "the chat template leaves a call of weigh out"


@pytest.mark.parametrize("kind", ["calls as JSON", "calls end with a marker of their own"])
def test_a_call_that_a_template_writes_in_one_piece_is_trained_in_that_form(kind: str) -> None:
    first = spans(read(calling({"town": "Ulm"}, tools=[FIND])), kind)[0]
    assert '{"name": "find", "arguments": {"town": "Ulm"}}' in first
    assert "<tool_call>" not in first


@pytest.mark.parametrize("kind", ["calls as JSON", "arguments as text", "one marker closes every turn"])
def test_arguments_as_text_or_as_object_give_the_same_tokens(kind: str) -> None:
    one, two = calling({"town": "Ulm", "n": 2}), calling('{"town": "Ulm", "n": 2}')
    assert spans(read(one), kind) == spans(read(two), kind)


@pytest.mark.parametrize("tools", [[FIND], json.dumps([FIND]), [FIND["function"]], [json.dumps(FIND)]])
def test_definitions_are_read_in_every_form(tools: Any) -> None:
    assert read(calling({}, tools=tools)).tools == (FIND,)


def test_sharegpt_calls_and_observations() -> None:
    row = {"conversations": [
        {"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "find", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "r"}, {"from": "gpt", "value": "a"},
    ], "tools": json.dumps([FIND["function"]]), "system": "s"}  # fmt: skip
    found = read(row)
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[2].calls == (ToolCall("find", {"a": 1}),)
    assert found.tools == (FIND,)


def test_a_template_without_calls_has_them_written_and_says_so() -> None:
    tokenizer = tokenizer_for(MECHANISMS["one marker closes every turn"])
    (row,) = tokenize(
        [read(calling({"town": "Ulm"}, tools=[FIND]))], tokenizer, choose(tokenizer, "auto"), Policy()
    )
    assert isinstance(row, TokenRow)
    assert '<tool_call>\n{"name": "find", "arguments": {"town": "Ulm"}}\n</tool_call>' in row.text
    assert any("knows no calls" in note for note in row.notes)


def called(template: str, call_id: str, result_id: str) -> TokenRow:
    """A call and its result with these ids, as `template` renders them."""
    call = ToolCall("find", {"town": "Ulm"}, call_id)
    messages = (
        Message("user", "q"), Message("assistant", "", calls=(call,)), Message("tool", "r", call_id=result_id, name="find"),
        Message("assistant", "a"),
    )  # fmt: skip
    tokenizer = tokenizer_for(template)
    talk = Conversation(1, messages, tools=(FIND,))
    (row,) = tokenize([talk], tokenizer, choose(tokenizer, "auto"), Policy())
    assert isinstance(row, TokenRow), row
    return row


OWN_IDS = (
    "{% for m in messages %}<|open|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<call>functions.{{ c.function.name }}:{{ loop.index0 }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
    "<|close|>\n{% endfor %}{% if add_generation_prompt %}<|open|>assistant\n{% endif %}"
)
"""Calls have ids of the template's making, as those of Kimi K2."""
NAMED_RESULTS = OWN_IDS.replace(
    "{{ m.content }}{% for", "{{ 'Return of ' + m.tool_call_id if m.role == 'tool' }}{{ m.content }}{% for"
)
CHANGING = "{% set seen = [] %}" + OWN_IDS.replace("<call>", "{% set _ = seen.append(c.id) %}<call>")


def test_calls_that_a_template_may_not_write_are_said_to_be_refused_with_its_words() -> None:
    """It changes a list while it runs, which no sandbox of templates allows."""
    row = called(CHANGING, "c1", "c1")
    (note,) = row.notes
    assert note.startswith("the chat template refuses calls of tools (access to attribute 'append' of 'list'")
    assert note.endswith("; they are written as JSON in <tool_call>")
    assert '<tool_call>\n{"name": "find"' in row.text
    assert called(OWN_IDS, "c1", "c1").notes == ()


def test_a_result_that_is_named_otherwise_than_its_call_is_said() -> None:
    said = ("the chat template writes the data's id beside a result, and not beside its call",)
    row = called(NAMED_RESULTS, "c1", "c1")
    assert "<call>functions.find:0 " in row.text
    assert "Return of c1" in row.text
    assert row.notes == said
    assert (
        called(NAMED_RESULTS, "functions.find:0", "functions.find:0").notes == ()
    )  # the data's ids are the template's
    with_both = NAMED_RESULTS.replace(
        "functions.{{ c.function.name }}:{{ loop.index0 }}", "{{ c.id }} {{ c.function.name }}"
    )
    assert called(with_both, "c1", "c1").notes == ()


@pytest.mark.parametrize(("calls", "words"), [
    ([{"function": {"arguments": "{}"}}], "names no function"), ("nonsense", "no JSON"), ([3], "not an object"),
])  # fmt: skip
def test_calls_that_cannot_be_read_leave_the_row_out(calls: Any, words: str) -> None:
    assert words in problem(chat(turn("user", "q"), turn("assistant", "", tool_calls=calls)))


# Weights, pairs, parts, roles, empty turns


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"weight": 0.0}])
def test_answers_that_are_not_to_be_learned_are_context(flag: Row) -> None:
    row = read(chat(turn("user", "q"), turn("assistant", "Wrong.", **flag), turn("user", "r"), turn("assistant", "Right.")))  # fmt: skip
    assert spans(row, "one marker closes every turn") == ["Right.<|close|>"]
    everything = spans(row, "one marker closes every turn", Policy(train_on="everything"))
    assert "Wrong." not in "".join(everything)


def test_a_weight_between_is_not_guessed() -> None:
    row = chat(turn("user", "q"), turn("assistant", "a", weight=0.5))
    assert "0, 1, true or false" in problem(row)
    assert read(row, ignore=("weights",)).messages[1].is_trained is None


PAIRS: list[Row] = [
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {"prompt": [turn("user", "q")], "chosen": [turn("assistant", "good")], "rejected": [turn("assistant", "bad")]},
    {"chosen": [turn("user", "q"), turn("assistant", "good")], "rejected": [turn("user", "q"), turn("assistant", "bad")]},
    {"prompt": [turn("user", "q")], "chosen": [turn("user", "q"), turn("assistant", "good")], "rejected": "bad"},
    {"question": "q", "chosen": turn("assistant", "good"), "rejected": turn("assistant", "bad")},
]  # fmt: skip


@pytest.mark.parametrize("row", PAIRS)
def test_pairs_are_known_and_not_trained_before_a_person_says_so(row: Row) -> None:
    detection = detect([row], DataSettings())
    assert detection.format == "preference"
    with pytest.raises(EngineError, match="pairs of a wanted and an unwanted answer"):
        require_settled(detection)
    settled = detect([row], DataSettings(preference="chosen"))
    require_settled(settled)
    assert [(m.role, m.text) for m in read_row(row, 1, settled).messages] == [
        ("user", "q"),
        ("assistant", "good"),
    ]


@pytest.mark.parametrize("key", ["text", "value", "content"])
def test_parts_are_read_under_any_usual_key(key: str) -> None:
    parts = [{"type": "text", key: "Say "}, {"type": "text", key: "so."}]
    assert read(chat(turn("user", parts), turn("assistant", "So."))).messages[0].text == "Say so."


@pytest.mark.parametrize("part", [
    {"type": "image", "image": "cat.png"}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_audio", "input_audio": {}},
])  # fmt: skip
def test_a_picture_leaves_the_row_out_until_a_person_says_otherwise(part: Row) -> None:
    row = chat(turn("user", [part, {"type": "text", "text": "What?"}]), turn("assistant", "A cat."))
    assert "only text is trained" in problem(row)
    assert read(row, ignore=("images",)).messages[0].text == "What?"
    assert "only text is trained" in problem({"instruction": "q", "output": "a", "images": ["a.png"]})


@pytest.mark.parametrize(("written", "role"), [
    ("developer", "developer"), ("model", "assistant"), ("Assistant", "assistant"), ("ai", "assistant"), ("Human", "user"),
])  # fmt: skip
def test_roles_under_their_usual_other_names(written: str, role: str) -> None:
    turns = [turn("user", "q"), turn("assistant", "a")]
    extra = [turn(written, "x")]
    row = chat(*extra, *turns) if role != "assistant" else chat(turns[0], *extra)
    assert role in [m.role for m in read(row).messages]


def test_a_developer_turn_is_a_system_turn_where_the_template_has_none() -> None:
    row = read(chat(turn("developer", "Be brief."), turn("user", "q"), turn("assistant", "a")))
    for kind, wanted in (("one marker closes every turn", "<|open|>system\nBe brief."),):
        tokenizer = tokenizer_for(MECHANISMS[kind])
        (found,) = tokenize([row], tokenizer, choose(tokenizer, "auto"), Policy())
        assert isinstance(found, TokenRow)
        assert wanted in found.text


def test_empty_turns() -> None:
    empty = chat(turn("user", "q"), turn("assistant", ""), turn("user", "r"), turn("assistant", "Yes."))
    kind = "one marker closes every turn"
    assert spans(read(empty), kind) == ["Yes.<|close|>"]
    assert spans(read(empty), kind, Policy(empty_answers="train")) == ["<|close|>", "Yes.<|close|>"]
    no_system = read(chat(turn("system", ""), turn("user", "q"), turn("assistant", "a")))
    assert [m.role for m in no_system.messages] == ["user", "assistant"]
    assert problem(chat(turn("user", "q"), turn("assistant", "   "))) == "its answer is empty"
    asked_on = read(chat(turn("user", "q"), turn("assistant", "a"), turn("user", "and?")))
    assert [m.text for m in asked_on.messages] == ["q", "a"]
    speaks_first = read(chat(turn("assistant", "Hello."), turn("user", "q"), turn("assistant", "Yes.")))
    assert spans(speaks_first, kind) == ["Hello.<|close|>", "Yes.<|close|>"]


def test_blank_lines_and_spaces_are_trained_as_they_are() -> None:
    text = "```\nif x:\n\n\n    a()\n\tb()  \n```\n"
    row = read(chat(turn("user", "q"), turn("assistant", text)))
    assert spans(row, "one marker closes every turn") == [text + "<|close|>"]
    tokenizer = tokenizer_for(MECHANISMS["contents are trimmed"])
    (trimmed,) = tokenize([row], tokenizer, choose(tokenizer, "auto"), Policy())
    assert isinstance(trimmed, TokenRow)
    assert trimmed.notes == ("the chat template trims white space around answers",)


# The account of keys


def test_every_key_is_used_or_named() -> None:
    row = chat(turn("user", "q", date="today"), turn("assistant", "a", score=3), source="web", topic=None)
    detection = detect([row], DataSettings())
    assert "messages" in detection.used
    assert set(detection.unused) == {"messages[].date", "messages[].score", "source"}
    assert set(read_row(row, 1, detection).unused) == set(detection.unused)
    assert detection.changes == ()
    assert detect([{"instruction": "q", "output": "a", "images": ["x"]}], DataSettings()).changes == (
        "images",
    )


def test_conversations_survive_json_and_pickle() -> None:
    row = read(calling({"town": "Ulm"}, tools=[FIND], source="web"))
    assert Conversation.from_json(json.loads(json.dumps(row.to_json()))) == row
    assert pickle.loads(pickle.dumps(row)) == row
    assert pickle.loads(pickle.dumps(RowProblem("x", 3))).number == 3
    assert row.content_key() != read(calling({"town": "Bonn"}, tools=[FIND])).content_key()
