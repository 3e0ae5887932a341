"""A chat's later turns are rendered as training had them, also where an answer called tools."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_engine.config import DataSettings
from qlora_engine.data.answer_reading import as_message
from qlora_engine.data.conversation import Conversation, Message, RowProblem, ToolCall
from qlora_engine.data.templates import chosen, laid_out, render
from tests.engine.data.test_call_reading import FORMS, writing
from tests.support.mechanisms import MECHANISMS
from tests.support.second_turns import ANSWERS, ASK, verdict
from tests.support.template_tokenizer import TOOL, tokenizer_for

_TURN = "<|open|>{{ m.role }}\n"
_ASK = "{% if add_generation_prompt %}<|open|>assistant\n{% endif %}"
_CALL = "<call>{{ c.function | tojson }}</call>"
MORE = {
    "calls before the text": "{% for m in messages %}" + _TURN + "{% for c in m.tool_calls or [] %}" + _CALL
    + "{% endfor %}{{ m.content }}<|close|>\n{% endfor %}" + _ASK,
    "another end behind a last result": "{% for m in messages %}" + _TURN + "{{ m.content }}{% for c in m.tool_calls or [] %}"
    + _CALL + "{% endfor %}{% if not loop.last %}\n{% endif %}<|close|>\n{% endfor %}" + _ASK,
    "earlier thoughts left out once an answer follows": "{% set ns = namespace(last=0) %}{% for m in messages %}"
    "{% if m.role == 'assistant' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}" + _TURN
    + "{% if m.reasoning_content and loop.index0 == ns.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}" + _CALL + "{% endfor %}<|close|>\n{% endfor %}" + _ASK,
    "an id in front of the name": writing(
        "<|begin|>{{ c.id }}<|name|>{{ c.function.name }}<|args|>{{ c.function.arguments | tojson }}<|end|>"
    ),
    "an id behind the name": writing(
        "[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]{{ c.function.arguments | tojson }}"
    ),
    "an id in the call's object": writing(
        '<call>{"name": {{ c.function.name | tojson }}, "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}</call>'
    ),
    "results by their ids": "{% for m in messages %}{% if m.role == 'tool' %}<|result|>{{ m.tool_call_id }} {{ m.name }} {{ m.content }}"
    "<|close|>\n{% else %}" + _TURN + "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.id }} "
    "{{ c.function | tojson }}</call>{% endfor %}<|close|>\n{% endif %}{% endfor %}" + _ASK,
}  # fmt: skip
ALL = MECHANISMS | FORMS | MORE


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", sorted(ALL))
def test_a_chat_goes_on_as_training_had_it(name: str, answer: str) -> None:
    try:
        found = verdict(tokenizer_for(ALL[name]), ANSWERS[answer])
    except RowProblem as problem:
        assert "the chat template" in problem.reason  # noqa: PT017 - a row that is no row of training has no later turn
        return
    assert found in ("right", "not trained so")


def _template(jinja: str) -> tuple[Any, Any]:
    tokenizer = tokenizer_for(jinja)
    return tokenizer, chosen(tokenizer, DataSettings())


def test_what_an_answer_says_besides_its_calls_is_told_apart() -> None:
    tokenizer, template = _template(MECHANISMS["calls as JSON"])
    call = '<call>{"name": "weatherfn", "arguments": {"town": "Ghent"}}</call>'
    wanted = (ToolCall("weatherfn", {"town": "Ghent"}),)
    for before, text, thought in (
        ("", "", None),
        ("Let me look. ", "Let me look.", None),
        ("<think>\nhm\n</think>\n\nSo: ", "So:", "hm"),
    ):
        marked = f"{before}{call}<|close|>"
        found = as_message(tokenizer, template, marked, marked, (TOOL,))
        assert (found.text, found.reasoning, found.calls) == (text, thought, wanted)
    assert as_message(tokenizer, template, call, call).calls == (), "it was given no tools"


def test_results_without_an_id_answer_the_calls_in_their_order() -> None:
    """In training as in a chat."""
    tokenizer, template = _template(MORE["results by their ids"])
    calls = (ToolCall("one", {}), ToolCall("two", {}))
    talk = (ASK, Message("assistant", "", calls=calls), Message("tool", "r1"), Message("tool", "r2"), Message("assistant", "a"))  # fmt: skip
    text = str.__str__(laid_out(Conversation(1, talk, (TOOL,)), template, template.policy).text)
    assert "<|result|>c00001000 one r1<|close|>" in text
    assert "<|result|>c00001001 two r2<|close|>" in text
    assert render(tokenizer, template, talk[:4], is_prompt=True, tools=(TOOL,)) in text
