"""Calls are read out of answers as the template writes them; what cannot be told is not guessed."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from qlora_engine.data import call_reading
from qlora_engine.data.conversation import Message, ToolCall
from qlora_engine.data.templates import choose, render
from tests.support.mechanisms import MECHANISMS
from tests.support.template_tokenizer import tokenizer_for

CALL = ToolCall("get_tide", {"port": "Saint-Malo\u00e9", "days": 3}, "call_7")
_ONE = "{% for m in messages %}{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}<|open|>assistant\n"
_OTHER = "<|close|>{% else %}<|open|>{{ m.role }}\n{{ m.content }}<|close|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|open|>assistant\n{% endif %}"
FORMS = {
    **{name: MECHANISMS[name] for name in MECHANISMS if "call" in name or "argument" in name or "ids" in name},
    "the name before the arguments": _ONE + "functions.{{ f.name }}:{{ loop.index0 }}<|args|>{{ f.arguments | tojson }}" + _OTHER,
    "attributes": _ONE + '<invoke name="{{ f.name }}">{% for k, v in f.arguments.items() %}\n<parameter name="{{ k }}" string='
    '"{{ "true" if v is string else "false" }}">{{ v }}</parameter>{% endfor %}\n</invoke>' + _OTHER,
}  # fmt: skip


@cache
def ready(name: str) -> tuple[Any, Any]:
    tokenizer = tokenizer_for(FORMS[name])
    return tokenizer, choose(tokenizer, "auto")


@pytest.mark.parametrize("name", sorted(FORMS))
def test_a_call_is_read_as_it_was_written(name: str) -> None:
    tokenizer, template = ready(name)
    form = call_reading.form_of(tokenizer, template)
    assert form is not None
    asked = Message("user", "q")
    whole = render(tokenizer, template, [asked, Message("assistant", "", calls=(CALL,))])
    said = whole[len(render(tokenizer, template, [asked])) :]
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    answer = tokenizer.decode(ids, skip_special_tokens=True)
    assert [(c.name, c.arguments) for c in call_reading.read_calls(form, answer)] == [
        (CALL.name, CALL.arguments)
    ]
    assert call_reading.read_calls(form, "It is high at six {not now} { [") == ()
    assert call_reading.read_calls(form, "") == ()


def test_what_the_probes_do_not_tell_is_not_guessed() -> None:
    jinja = (
        _ONE + "[{{ f.name }}({% for k, v in f.arguments.items() %}{{ k }}={{ v }} {% endfor %})]" + _OTHER
    )
    tokenizer = tokenizer_for(jinja)
    assert call_reading.form_of(tokenizer, choose(tokenizer, "auto")) is None
