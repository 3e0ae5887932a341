"""Reads the calls of tools out of an answer, by how the model's own template writes them. Torch-free.

Two probes are rendered, tokenized and decoded as an answer would be; what stands around the name and the arguments in them
is what is looked for. Nothing is known by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_engine import parsing
from qlora_engine.data.conversation import Message, RowProblem, ToolCall
from qlora_engine.data.formats.calls import arguments_of
from qlora_engine.data.layout import common_prefix
from qlora_engine.data.templates import Template, render

ID = re.compile(r"0*c1")
ATTRIBUTE = re.compile('="[^"]*"')
NAME = r"(?P<name>[\w.:-]{1,128})"
PROBE = ("fnone", {"keyone": "valone", "keytwo": "valtwo"})
TOOL = {
    "type": "function",
    "function": {
        "name": "fnone", "description": "d",
        "parameters": {"type": "object", "properties": {"keyone": {"type": "string"}, "keytwo": {"type": "string"}}},
    },
}  # fmt: skip


@dataclass(frozen=True)
class ObjectForm:
    """A call is one JSON object with these keys for name and arguments; `inside` is the key that both stand under."""

    name_key: str
    arguments_key: str
    inside: str | None = None

    def read(self, text: str) -> Iterator[ToolCall]:
        for value, _ in _objects(text):
            inner = value.get(self.inside) if self.inside else value
            if isinstance(inner, Mapping) and isinstance(inner.get(self.name_key), str):
                yield from _call(inner[self.name_key], inner.get(self.arguments_key, {}))


@dataclass(frozen=True)
class BesideForm:
    """The name behind `glued` letters, `between`, and the arguments as a JSON object."""

    glued: str
    between: str

    def read(self, text: str) -> Iterator[ToolCall]:
        pattern = re.compile(re.escape(self.glued) + NAME + self._between() + r"\s*(?=\{)")
        for value, start in _objects(text):
            found = [m for m in pattern.finditer(text, 0, start + 1) if m.end() == start]
            if found:
                yield from _call(found[-1]["name"], value)

    def _between(self) -> str:
        """Ids and counts differ from call to call."""
        return re.sub(r"\d+", r"\\d+", re.escape(ID.sub("\0", self.between))).replace("\0", r"[\w-]+")


@dataclass(frozen=True)
class PairsForm:
    """The name between two texts, then every argument as its key and its value between texts of their own."""

    before: str
    after: str
    open: str
    middle: str
    close: str

    def read(self, text: str) -> Iterator[ToolCall]:
        head = re.compile(re.escape(self.before) + NAME + re.escape(self.after))
        pair = re.compile(
            f"{re.escape(self.open)}(?P<key>[^<>\n]{{1,128}}?){self._middle()}(?P<value>.*?){re.escape(self.close)}", re.DOTALL
        )  # fmt: skip
        heads = list(head.finditer(text))
        for found, behind in zip(heads, [*(h.start() for h in heads[1:]), len(text)], strict=False):
            pairs = pair.finditer(text, found.end(), behind)
            yield ToolCall(found["name"], {p["key"]: _value(p["value"]) for p in pairs})

    def _middle(self) -> str:
        """An attribute (the type of a value) differs from argument to argument."""
        return re.escape(ATTRIBUTE.sub('="\0"', self.middle)).replace("\0", '[^"]*')


Form = ObjectForm | BesideForm | PairsForm


def form_of(tokenizer: Any, template: Template) -> Form | None:
    """How calls look in answers of this model; None where the probes do not tell."""
    try:
        seen = _seen(tokenizer, template)
    except RowProblem:
        return None
    return _object_form(seen) or _beside_form(seen) or _pairs_form(seen)


def read_calls(form: Form, text: str) -> tuple[ToolCall, ...]:
    """The calls in an answer; none when it makes none, or writes them in another way."""
    return tuple(form.read(text))


def _seen(tokenizer: Any, template: Template) -> str:
    asked = Message("user", "qone")
    call = Message("assistant", "", calls=(ToolCall(PROBE[0], PROBE[1], "c1"),))
    whole = render(tokenizer, template, [asked, call], tools=[TOOL])
    prompt = render(tokenizer, template, [asked], tools=[TOOL], is_prompt=True)
    said = whole[common_prefix(whole, prompt, ()) :]
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _object_form(seen: str) -> ObjectForm | None:
    for value, _ in _objects(seen):
        inner: list[tuple[str | None, Any]] = [(None, value), *value.items()]
        for inside, held in inner:
            if not isinstance(held, Mapping):
                continue
            names = [k for k, v in held.items() if v == PROBE[0]]
            given = [k for k, v in held.items() if isinstance(v, str | dict) and _is_probe(v)]
            if names and given:
                return ObjectForm(names[0], given[0], inside)
    return None


def _beside_form(seen: str) -> BesideForm | None:
    place = seen.find(PROBE[0])
    for value, start in _objects(seen):
        if 0 <= place < start and value == PROBE[1]:
            glued = re.findall(r"[\w.:-]*$", seen[:place])[0]
            between = seen[place + len(PROBE[0]) : start].rstrip()
            return None if ID.search(glued) or ID.match(between) else BesideForm(glued, between)
    return None


def _pairs_form(seen: str) -> PairsForm | None:
    pieces = re.split("fnone|keyone|valone|keytwo|valtwo", seen)
    order = re.findall("fnone|keyone|valone|keytwo|valtwo", seen)
    if order != ["fnone", "keyone", "valone", "keytwo", "valtwo"]:
        return None
    before, start, middle, next_, end = pieces[0], pieces[1], pieces[2], pieces[3], pieces[5]
    close = next_[: common_prefix(next_, end, ())]
    opener = next_[len(close) :]
    if not (middle.strip() and close.strip() and start.endswith(opener)):
        return None
    after = start[: len(start) - len(opener)]
    return PairsForm(before.lstrip(), after.rstrip(), opener.strip(), middle, close.rstrip())


def _is_probe(value: Any) -> bool:
    try:
        return arguments_of(value) == PROBE[1]
    except RowProblem:
        return False


def _call(name: str, arguments: Any) -> Iterator[ToolCall]:
    try:
        yield ToolCall(name, arguments_of(arguments))
    except RowProblem:
        return


def _objects(text: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Every JSON object of a text that stands in no other one, with its place."""
    place = text.find("{")
    while place >= 0:
        try:
            value, end = parsing.row_from_json(text, place)
        except ValueError:
            end = place + 1
        else:
            if isinstance(value, dict):
                yield value, place
        place = text.find("{", end)


def _value(text: str) -> Any:
    """An argument as JSON where it is some, else as the text it is."""
    try:
        return parsing.from_json(text.strip())
    except ValueError:
        return text.strip("\n")
