"""The parts of a message's content: text under any usual key, reasoning, calls and results; images are told. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_engine.data.conversation import RowProblem, ToolCall
from qlora_engine.data.formats import calls as tool_calls
from qlora_engine.data.formats.kind import Keys, is_given, meaning_of

PART_TEXT_KEYS = ("text", "content", "value", "input_text", "output_text", "thinking", "reasoning")
REASONING_TYPES = ("thinking", "reasoning", "thought")


@dataclass(frozen=True)
class Result:
    """A tool's result that stands among the parts of a turn."""

    text: str
    call_id: str | None


@dataclass
class Parts:
    """`text` is None when the content says nothing at all (null)."""

    text: str | None = None
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    results: tuple[Result, ...] = ()


def read_parts(content: Any, keys: Keys, under: str) -> Parts:
    """A content of any usual form: text, null, a number, or a list of parts.

    Raises:
        RowProblem: it is of another form.
    """
    if content is None or isinstance(content, str):
        return Parts(content)
    if isinstance(content, Mapping):
        content = [content]
    if isinstance(content, int | float) and not isinstance(content, bool):
        return Parts(str(content))
    if not isinstance(content, list | tuple):
        raise RowProblem("a turn's content is neither text nor a list of parts")
    parts = Parts()
    for part in content:
        _add(parts, part, keys, f"{under}content[].")
    return parts


def _add(parts: Parts, part: Any, keys: Keys, under: str) -> None:
    if isinstance(part, str):
        parts.text = (parts.text or "") + part
        return
    if not isinstance(part, Mapping):
        raise RowProblem("a part of a turn is neither text nor an object")
    kind = str(part.get("type") or "text").lower()
    if kind in ("tool_use", "tool_call", "function_call"):
        parts.calls = (*parts.calls, tool_calls.read_call(part))
    elif kind in ("tool_result", "tool_response"):
        inner = read_parts(part.get("content", part.get("output")), keys, under)
        parts.results = (*parts.results, Result(inner.text or "", _id(part)))
    elif kind in REASONING_TYPES:
        parts.reasoning = "\n\n".join(t for t in (parts.reasoning, _text(part)) if t)
    elif kind in ("text", "input_text", "output_text"):
        parts.text = (parts.text or "") + _text(part)
        _others(part, keys, under)
    elif meaning_of(kind) is not None:
        keys.unused[f"{under}{kind}"] = None
    else:
        raise RowProblem(f"a part of a turn has the unknown type {kind!r}")


def _others(part: Mapping[str, Any], keys: Keys, under: str) -> None:
    """A text part may carry more than its text."""
    keys.left(part, known=("type", *PART_TEXT_KEYS, "annotations", "cache_control"), under=under)


def _text(part: Mapping[str, Any]) -> str:
    for key in PART_TEXT_KEYS:
        value = part.get(key)
        if isinstance(value, str):
            return value
        if isinstance(value, Mapping) and isinstance(value.get("value"), str):
            return str(value["value"])
    if not any(is_given(value) for key, value in part.items() if key != "type"):
        return ""
    raise RowProblem("a part of a turn has no text")


def _id(part: Mapping[str, Any]) -> str | None:
    value = part.get("tool_use_id") or part.get("tool_call_id") or part.get("call_id")
    return None if value is None else str(value)
