"""A conversation as a chat template takes it: roles, reasoning, calls and tools in the form that this template reads.

Every text that comes from the row is traced, so that the rendered text knows whose words are where. Torch-free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_engine.data.conversation import Message, ToolCall
from qlora_engine.data.traced import Traced, joined, traced

THINK_OPEN, THINK_CLOSE = "<think>\n", "\n</think>\n\n"
HIDDEN = 0xE800
"""Where the private characters begin that stand for quoted markers while a template runs."""
TOOLS = -1
"""The message number of what the definitions of tools say."""
NO_CALLS = "written"
CALL_OPEN, CALL_CLOSE = "<tool_call>\n", "\n</tool_call>"
RESULT_OPEN, RESULT_CLOSE = "<tool_response>\n", "\n</tool_response>"


@dataclass(frozen=True)
class Shape:
    """What a template reads. Found by rendering probes, never by its name.

    `reasoning`: the key it reads, `parts` (a part of the content), `inline` (`<think>` in the content) or None (left
    out). `calls`: `object` or `text` (form of the arguments), `flat` or `parameters` (no `function` around them), or
    `written` (the template knows none: they are written into the text as JSON). `has_results`, `has_tools`: a tool's
    result is a turn of its own, definitions are rendered; otherwise they are written into a user's and the system's turn.
    `has_tool_list`: it wants a list of tools also where there are none. `refusal`: what it raises at a call, where it has to
    be written into the text for that.
    """

    folds_system: bool = False
    has_developer: bool = False
    reasoning: str | None = "reasoning_content"
    calls: str = "object"
    has_results: bool = True
    has_tools: bool = True
    has_short_ids: bool = False
    is_content_null: bool = False
    has_tool_list: bool = False
    refusal: str = ""
    switches: tuple[tuple[str, Any], ...] = ()


@dataclass
class Origins:
    """Which number stands for which part of a conversation: (message, field). `quoted` are the markers, and what else a
    template looks for, that a row only quotes: they are hidden from the template, and put back into what it wrote."""

    quoted: re.Pattern[str] | None = None
    parts: list[tuple[int, str]] = field(default_factory=lambda: [(TOOLS, "template")])
    hidden: list[str] = field(default_factory=list)

    def new(self, message: int, name: str) -> int:
        self.parts.append((message, name))
        return len(self.parts) - 1

    def text(self, text: str, message: int, name: str) -> Traced:
        return Traced.of(self.hide(text), self.new(message, name))

    def hide(self, text: str) -> str:
        """The same length, without anything that the template would take for its own."""
        return text if self.quoted is None else self.quoted.sub(self._hidden, text)

    def shown(self, text: Traced) -> Traced:
        """What was hidden, at its old places."""
        if not self.hidden:
            return text
        plain = str.__str__(text)
        for number, word in enumerate(self.hidden):
            plain = plain.replace(chr(HIDDEN + number) * len(word), word)
        return Traced.made(plain, text.runs)

    def _hidden(self, found: re.Match[str]) -> str:
        word = found[0]
        if word not in self.hidden:
            self.hidden.append(word)
        return chr(HIDDEN + self.hidden.index(word)) * len(word)


class Untraced(Origins):
    """For a render that keeps no account: texts as they are."""

    def new(self, message: int, name: str) -> int:
        return 0

    def text(self, text: str, message: int, name: str) -> Any:
        return text


def worded(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], shape: Shape, origins: Origins
) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """(messages, tools) for the template."""
    found: list[dict[str, Any]] = []
    awaited: list[_Awaited] = []
    for number, message in enumerate(messages):
        if message.role == "tool":
            _add_result(found, message, number, shape, origins, _answered(message, awaited))
            continue
        if message.role == "assistant":
            if message.calls:
                awaited = [
                    _Awaited(c.id or _own_id(number, i), c.id, c.name) for i, c in enumerate(message.calls)
                ]
            found.append(_answer(message, number, shape, origins))
        else:
            found.append(_turn(message, number, shape, origins))
    given: list[Any] | None = [
        traced(dict(t), lambda: origins.new(TOOLS, "text"), origins.hide) for t in tools
    ]
    if not given and not shape.has_tool_list:
        given = None
    if given and not shape.has_tools:
        found, given = _with_written_tools(found, tools, origins), [] if shape.has_tool_list else None
    return (_folded(found) if shape.folds_system else found), given


@dataclass(frozen=True)
class _Awaited:
    """A call that a result may answer; `given` is the data's own id."""

    id: str
    given: str | None
    name: str


def _answered(result: Message, awaited: list[_Awaited]) -> _Awaited | None:
    """The call that a result answers: the one it names, else the first that has no result yet, which it takes off."""
    named = next((c for c in awaited if result.call_id and c.given == result.call_id), None)
    found = named or (awaited[0] if awaited else None)
    if found is not None and len(awaited) > 1 and (named or not result.call_id):
        awaited.remove(found)
    return found


def _turn(message: Message, number: int, shape: Shape, origins: Origins) -> dict[str, Any]:
    role = "system" if message.role == "developer" and not shape.has_developer else message.role
    found: dict[str, Any] = {"role": role, "content": origins.text(message.text, number, "text")}
    if message.name:
        found["name"] = origins.text(message.name, number, "name")
    return found


def _answer(message: Message, number: int, shape: Shape, origins: Origins) -> dict[str, Any]:
    text: Any = origins.text(message.text, number, "text")
    found: dict[str, Any] = {"role": "assistant"}
    if message.reasoning:
        thought = origins.text(message.reasoning, number, "reasoning")
        if shape.reasoning == "inline":
            text = joined((THINK_OPEN, thought, THINK_CLOSE, text))
        elif shape.reasoning == "parts":
            text = [{"type": "thinking", "thinking": thought}, {"type": "text", "text": text}]
        elif shape.reasoning is not None:
            found[shape.reasoning] = thought
    if message.calls and shape.calls == NO_CALLS:
        text = joined((text, "\n" if message.text.strip() else "", _written_calls(message, number, origins)))
    elif message.calls:
        found["tool_calls"] = [_call(c, i, number, shape, origins) for i, c in enumerate(message.calls)]
        if not message.text.strip() and shape.is_content_null and not isinstance(text, list):
            text = None
    return {**found, "content": text}


def _call(call: ToolCall, index: int, number: int, shape: Shape, origins: Origins) -> dict[str, Any]:
    def new() -> int:
        return origins.new(number, "calls")

    arguments: Any = call.arguments
    if shape.calls == "text" and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    name = origins.text(call.name, number, "call name")
    inner = {"name": name, "arguments": traced(arguments, new, origins.hide)}
    if shape.calls == "parameters":
        inner["parameters"] = inner.pop("arguments")
    identity = origins.text(_call_id(call.id, number, index, shape), number, "id")
    if shape.calls in ("flat", "parameters"):
        return {"id": identity, **inner}
    return {"id": identity, "type": "function", "function": inner}


def _call_id(given: str | None, number: int, index: int, shape: Shape) -> str:
    """The data's own, unless the template wants nine letters (Mistral's do)."""
    if given and not (shape.has_short_ids and not (len(given) == 9 and given.isalnum())):
        return given
    if given:
        kept = "".join(c for c in given if c.isalnum())
        return f"{kept[-9:]:0>9}"
    return _own_id(number, index)


def _own_id(number: int, index: int) -> str:
    """For a call without one."""
    return f"c{number:05d}{index:03d}"


def _written_calls(message: Message, number: int, origins: Origins) -> Traced:
    """Calls as JSON between marks, for templates that know none."""
    pieces: list[str] = []
    for call in message.calls:
        said = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        pieces += ["\n" if pieces else "", CALL_OPEN, origins.text(said, number, "calls"), CALL_CLOSE]
    return joined(pieces)


def _add_result(
    found: list[dict[str, Any]], message: Message, number: int, shape: Shape, origins: Origins,
    call: _Awaited | None,
) -> None:  # fmt: skip
    text = origins.text(message.text, number, "text")
    if not shape.has_results:
        said = joined((RESULT_OPEN, text, RESULT_CLOSE))
        if found and found[-1].get("is_result"):
            found[-1]["content"] = joined((found[-1]["content"], "\n", said))
        else:
            found.append({"role": "user", "content": said, "is_result": True})
        return
    result: dict[str, Any] = {"role": "tool", "content": text}
    name = message.name or (call.name if call is not None else None)
    if name:
        result["name"] = origins.text(name, number, "name")
    identity = _call_id(message.call_id or (call.id if call else None), max(number - 1, 0), 0, shape)
    result["tool_call_id"] = origins.text(identity, number, "id")
    found.append(result)


def _with_written_tools(
    found: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]], origins: Origins
) -> list[dict[str, Any]]:
    """The definitions in the system's turn, with how a call is written."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    said = joined((
        "You can call these tools:\n<tools>\n", origins.text(listed, TOOLS, "text"), "\n</tools>\n",
        'Call one by writing:\n<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>',
    ))  # fmt: skip
    if found and found[0]["role"] in ("system", "developer"):
        return [{**found[0], "content": joined((found[0]["content"], "\n\n", said))}, *found[1:]]
    return [{"role": "system", "content": said}, *found]


def _folded(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The system prompt in front of the first question, for templates that know no system role."""
    if not found or found[0]["role"] not in ("system", "developer"):
        return found
    system, rest = found[0]["content"], found[1:]
    if rest and rest[0]["role"] == "user":
        rest[0] = {**rest[0], "content": joined((system, "\n\n", rest[0]["content"]))}
        return rest
    return [{"role": "user", "content": system}, *rest]
