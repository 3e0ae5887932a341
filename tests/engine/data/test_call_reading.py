"""Calls are read out of answers as the template writes them; what cannot be told is not guessed."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from qlora_engine.data import call_reading
from qlora_engine.data.call_forms import PythonForm
from qlora_engine.data.conversation import Message, ToolCall
from qlora_engine.data.layout import common_prefix
from qlora_engine.data.templates import choose, render
from tests.support.mechanisms import MECHANISMS
from tests.support.template_tokenizer import tokenizer_for

CALL = ToolCall("get_tide", {"port": "Saint-Malo\u00e9", "days": 3}, "call_7")
OTHER = ToolCall("find", {"text": 'a "b"\nc', "count": 2}, "call_8")
NOTHING = ToolCall("now", {}, "call_9")
_TURN, _ASK = "{% for m in messages %}<|open|>{{ m.role }}\n{{ m.content }}", "{% if add_generation_prompt %}<|open|>assistant\n{% endif %}"  # fmt: skip
_CLOSE = "<|close|>\n{% endfor %}" + _ASK
_PAIRS = "{% for k, v in c.function.arguments.items() %}"


def writing(call: str, before: str = "", after: str = "", between: str = "") -> str:
    """A template that writes every call `c` of a turn so."""
    each = (
        "{% for c in m.tool_calls %}"
        + call
        + (f"{{% if not loop.last %}}{between}{{% endif %}}")
        + "{% endfor %}"
    )
    return _TURN + "{% if m.tool_calls %}" + before + each + after + "{% endif %}" + _CLOSE


VALUE = "{{ v if v is string else v | tojson }}"
FORMS = {
    **{name: MECHANISMS[name] for name in ("calls as JSON", "arguments as text", "arguments one by one")},
    "the name before the arguments": writing(
        "<|call|>functions.{{ c.function.name }}:{{ loop.index0 }}<|args|>{{ c.function.arguments | tojson }}"
    ),
    "the name and an id, between special tokens alone": writing(
        "[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]{{ c.function.arguments | tojson }}"
    ),
    "an id, then the name": writing(
        "<|begin|>{{ c.id }}<|name|>{{ c.function.name }}<|args|>{{ c.function.arguments | tojson }}<|end|>"
    ),
    "attributes": writing(
        '<invoke name="{{ c.function.name }}">' + _PAIRS + '\n<parameter name="{{ k }}" string="{{ "true" if v is string else "false" }}">'
        + VALUE + "</parameter>{% endfor %}\n</invoke>", "<calls>\n", "\n</calls>", "\n",
    ),
    "a name without a text behind it": writing(
        "<call>{{ c.function.name }}" + _PAIRS + "<key>{{ k }}</key><value>" + VALUE + "</value>{% endfor %}</call>"
    ),
    "keys as tags": writing(
        '<invoke name="{{ c.function.name }}">' + _PAIRS + "<{{ k }}>" + VALUE + "</{{ k }}>{% endfor %}</invoke>"
    ),
    "the name said twice": writing(
        ' to={{ c.function.name }}<|text|><invoke name="{{ c.function.name }}">' + _PAIRS + "<p={{ k }}>" + VALUE + "</p>{% endfor %}</invoke>"
    ),
    "the name as a key": writing(
        "{{ '{' }}{{ c.function.name | tojson }}: {{ c.function.arguments | tojson }}{{ '}' }}", "<|tools|>[", "]<|done|>", ", "
    ),
    "as Python": writing(
        "{{ c.function.name }}(" + _PAIRS + "{{ k }}={% if v is string %}'{{ v }}'{% else %}{{ v | tojson }}{% endif %}"
        "{% if not loop.last %}, {% endif %}{% endfor %})", "<|tools|>[", "]<|done|>", ", ",
    ),
    "bare keys": writing(
        "<|call|>call:{{ c.function.name }}{{ '{' }}" + _PAIRS + "{{ k }}:{% if v is string %}<|quote|>{{ v }}<|quote|>{% else %}"
        "{{ v | tojson }}{% endif %}{% if not loop.last %},{% endif %}{% endfor %}{{ '}' }}<|done|>"
    ),
    "the prompt has the marker of the first": "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.content %}>>>all\n"
    "{{ m.content }}{% endif %}{% for c in m.tool_calls or [] %}>>>{{ c.function.name }}\n{{ c.function.arguments | tojson }}"
    "{% endfor %}<|close|>{% else %}<|open|>{{ m.role }}\n{{ m.content }}<|close|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}>>>{% endif %}",
}  # fmt: skip
ANSWERS = {
    "one": Message("assistant", "", calls=(CALL,)),
    "two": Message("assistant", "", calls=(CALL, OTHER)),
    "two, the other way": Message("assistant", "", calls=(OTHER, CALL)),
    "without arguments": Message("assistant", "", calls=(NOTHING,)),
    "behind words": Message("assistant", "Let me look.", calls=(CALL, NOTHING)),
    "none": Message("assistant", 'It is {"a": {"b": 1}}, [x(y=1)] and call:f{g:1}.'),
}


@cache
def ready(name: str) -> tuple[Any, Any, call_reading.Form | None]:
    tokenizer = tokenizer_for(FORMS[name])
    template = choose(tokenizer, "auto")
    return tokenizer, template, call_reading.form_of(tokenizer, template)


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", sorted(FORMS))
def test_calls_are_read_as_they_were_written(name: str, answer: str) -> None:
    tokenizer, template, form = ready(name)
    assert form is not None
    asked, wanted = Message("user", "q"), ANSWERS[answer]
    whole = render(tokenizer, template, [asked, wanted])
    prompt = render(tokenizer, template, [asked], is_prompt=True)
    said = whole[common_prefix(whole, prompt, template.source.markers) :]
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    marked = tokenizer.decode(ids, skip_special_tokens=False)
    found = call_reading.read_calls(form, marked)
    assert [(c.name, c.arguments) for c in found] == [(c.name, c.arguments) for c in wanted.calls]
    assert call_reading.read_calls(form, "It is high at six {not now} { [ <") == ()
    assert call_reading.read_calls(form, "") == ()


@pytest.mark.parametrize("jinja", [
    writing("[{{ c.function.name }}(" + _PAIRS + "{{ k }}={{ v }} {% endfor %})]"),
    writing("{{ c.function.name }} {{ c.function.arguments | tojson }}"),
])  # fmt: skip
def test_what_the_probes_do_not_tell_is_not_guessed(jinja: str) -> None:
    tokenizer = tokenizer_for(jinja)
    assert call_reading.form_of(tokenizer, choose(tokenizer, "auto")) is None


@pytest.mark.parametrize("text", [
    "[__import__('os').system('x')]", "[f(x=open('y'))]", "[f(1)]", "[f(**g)]", "[f(x=1]", "[" * 3000, "[f(x=" + "(" * 3000 + ")]",
    "[f(x=" + "-" * 3000 + "1)]", "[\0]",
])  # fmt: skip
def test_python_that_is_no_list_of_values_is_no_call_and_never_run(text: str) -> None:
    assert call_reading.read_calls(PythonForm(r"\["), text) == ()
