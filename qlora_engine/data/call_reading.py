"""Reads the calls of tools out of an answer, by how the model's own template writes them. Torch-free.

Probes are rendered, tokenized and decoded as an answer would be, special tokens too; what stands around the name and the
arguments in them is what is looked for. Nothing is known by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_engine.data.call_forms import (
    ID,
    BareForm,
    BesideForm,
    Form,
    KeyedForm,
    ObjectForm,
    PairsForm,
    PythonForm,
    objects,
)
from qlora_engine.data.conversation import Message, RowProblem, ToolCall
from qlora_engine.data.formats.calls import arguments_of
from qlora_engine.data.layout import common_prefix
from qlora_engine.data.templates import Template, render

__all__ = ["Form", "form_of", "read_calls"]

ARGUMENTS = {"keyone": "valone", "keytwo": "valtwo"}
ONE, TWO = ToolCall("fnone", ARGUMENTS, "c1"), ToolCall("ftwo", ARGUMENTS, "c2")
PROBES = (
    Message("assistant", "", calls=(ONE,)),
    Message("assistant", "toneone", calls=(ONE,)),
    Message("assistant", "", calls=(ONE, TWO)),
)
"""A call alone, behind words, and before another one: what is the same before each of them belongs to a call."""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name, "description": "d",
            "parameters": {"type": "object", "properties": {"keyone": {"type": "string"}, "keytwo": {"type": "string"}}},
        },
    } for name in (ONE.name, TWO.name)
]  # fmt: skip
WORDS = re.compile("fnone|keyone|valone|keytwo|valtwo")
PAIRS = ["keyone", "valone", "keytwo", "valtwo"]
TAGGED_PAIRS = ["keyone", "valone", "keyone", "keytwo", "valtwo", "keytwo"]
CUT_TAG = re.compile(r"^[^<\[]*[>\]]\s*(?=[<\[])")


def form_of(tokenizer: Any, template: Template) -> Form | None:
    """How calls look in answers of this model; None where the probes do not tell."""
    seen = [_seen(tokenizer, template, probe) for probe in PROBES]
    alone = seen[0]
    if alone is None or ONE.name not in alone:
        return None
    markers = template.source.markers
    return (
        _object_form(alone) or _list_form(alone, seen[1]) or _named_form(alone, _head(seen, markers), markers)
    )


def read_calls(form: Form, text: str) -> tuple[ToolCall, ...]:
    """The calls in an answer, whose text has its special tokens; none when it makes none, or writes them in another way."""
    return tuple(call for _, call in form.placed(text))


def _seen(tokenizer: Any, template: Template, answer: Message) -> str | None:
    """What a model would say for `answer`; None where the template refuses it."""
    asked = Message("user", "qone")
    try:
        whole = render(tokenizer, template, [asked, answer], tools=TOOLS)
        prompt = render(tokenizer, template, [asked], tools=TOOLS, is_prompt=True)
    except RowProblem:
        return None
    said = whole[common_prefix(whole, prompt, template.source.markers) :]
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _object_form(seen: str) -> ObjectForm | None:
    for value, _ in objects(seen):
        inner: list[tuple[str | None, Any]] = [(None, value), *value.items()]
        for inside, held in inner:
            if not isinstance(held, Mapping):
                continue
            names = [k for k, v in held.items() if v == ONE.name]
            given = [k for k, v in held.items() if isinstance(v, str | dict) and _is_probe(v)]
            if names and given:
                ids = [k for k, v in {**value, **held}.items() if isinstance(v, str) and ID.fullmatch(v)]
                return ObjectForm(names[0], given[0], inside, *ids[:1])
    return None


def _list_form(alone: str, behind_words: str | None) -> KeyedForm | PythonForm | None:
    """A list of calls in brackets, behind a marker that says so."""
    befores = [text.partition("[")[0] for text in (alone, behind_words) if text]
    head = _tidy(_common_end(befores))
    inside = alone[alone.find("[") :]
    if not head or "[" not in alone:
        return None
    pattern = re.escape(head) + r"\["
    if any(value == {ONE.name: ARGUMENTS} for value, _ in objects(inside)):
        return KeyedForm(pattern)
    form = PythonForm(pattern)
    return (
        form if [(c.name, c.arguments) for c in read_calls(form, alone)] == [(ONE.name, ARGUMENTS)] else None
    )


def _named_form(
    seen: str, head: str, markers: tuple[str, ...]
) -> BesideForm | BareForm | PairsForm | None:  # fmt: skip
    if not head:
        return None
    behind = seen[_place(seen, ONE.name) + len(ONE.name) :]
    for value, start in objects(behind):
        if value == ARGUMENTS:
            between = behind[:start].rstrip()
            return None if ID.match(between) else BesideForm(head, between)
    bare = re.match(r"\{keyone:(\S+?)valone\1,\s*keytwo:\1valtwo\1\}", behind)
    return BareForm(head, bare[1]) if bare else _pairs_form(behind, head, markers)


def _pairs_form(behind: str, head: str, markers: tuple[str, ...]) -> PairsForm | None:
    pieces, order = WORDS.split(behind), WORDS.findall(behind)
    if order not in (PAIRS, TAGGED_PAIRS):
        return None
    is_again = order == TAGGED_PAIRS
    start, middle, next_, end = pieces[0], pieces[1], pieces[3 if is_again else 2], pieces[-1]
    close = _whole_tags(next_[: common_prefix(next_, end, markers)])
    opener = next_[len(close) :]
    if not (middle.strip() and close.strip() and opener.strip() and start.endswith(opener)):
        return None
    after = start[: len(start) - len(opener)].rstrip()
    if is_again:
        return PairsForm(head, after, opener.strip(), middle, pieces[2], True, close.rstrip())
    return PairsForm(head, after, opener.strip(), middle, close.rstrip())


def _head(seen: Sequence[str | None], markers: tuple[str, ...]) -> str:
    """A pattern of what stands before the name of every call; empty where nothing does."""
    named = [(seen[0], ONE.name), (seen[1], ONE.name), (seen[2], TWO.name)]
    befores = [text[: _place(text, name)] for text, name in named if text and _place(text, name) >= 0]
    if not befores:
        return ""
    if befores[0].strip():
        return re.escape(_tidy(_common_end(befores)))
    others = _tidy(
        _common_end(befores[1:])
    )  # the prompt has what marks a call, where an answer begins with one
    return rf"(?:\A\s*|{re.escape(others)})" if others else ""


def _place(seen: str, name: str) -> int:
    """Where the name of the last call stands; it may be said before, too."""
    return seen.rfind(name, 0, max(0, seen.rfind("keyone")))


def _common_end(texts: Sequence[str]) -> str:
    shortest = min(texts, key=len)
    sizes = range(1, len(shortest) + 1)
    size = next((n - 1 for n in sizes if len({text[-n] for text in texts}) > 1), len(shortest))
    return shortest[len(shortest) - size :]


def _tidy(text: str) -> str:
    """Without white space and half a tag at its beginning."""
    return CUT_TAG.sub("", text.lstrip())


def _whole_tags(text: str) -> str:
    """Without a tag that is only begun at its end."""
    return re.sub(r"<[^<>]*$", "", text)


def _is_probe(value: Any) -> bool:
    try:
        return arguments_of(value) == ARGUMENTS
    except RowProblem:
        return False
