"""Calls of tools and definitions of tools, in the forms that files have them. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlora_engine import parsing
from qlora_engine.data.conversation import RowProblem, ToolCall
from qlora_engine.data.formats.kind import is_given

Definition = Mapping[str, Any]


def of_turn(turn: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """The calls of an OpenAI message: `tool_calls`, or the older `function_call`.

    Raises:
        RowProblem: they cannot be read.
    """
    listed, single = turn.get("tool_calls"), turn.get("function_call")
    found: list[ToolCall] = []
    if is_given(listed):
        parsed = _parsed(listed)
        found += [read_call(call) for call in (parsed if isinstance(parsed, list | tuple) else [parsed])]
    if is_given(single):
        found.append(read_call(_parsed(single)))
    return tuple(found)


def from_text(content: Any) -> tuple[ToolCall, ...]:
    """The calls of a turn that is nothing else: JSON text, an object, or a list of them.

    Raises:
        RowProblem: it is none of these.
    """
    parsed = _parsed(content)
    calls = parsed if isinstance(parsed, list | tuple) else [parsed]
    if not calls:
        raise RowProblem("a turn of calls has none")
    return tuple(read_call(call) for call in calls)


def read_call(call: Any) -> ToolCall:
    """One call; `{"function": {"name", "arguments"}}`, `{"name", "arguments"}` or `{"name", "input"}`.

    Raises:
        RowProblem: it names no function.
    """
    if not isinstance(call, Mapping):
        raise RowProblem("a call of a tool is not an object")
    inner = call.get("function")
    named = inner if isinstance(inner, Mapping) else call
    name = named.get("name")
    if not isinstance(name, str) or not name.strip():
        raise RowProblem("a call of a tool names no function")
    given: Any = next(
        (named[k] for k in ("arguments", "input", "parameters", "args") if named.get(k) is not None), {}
    )
    identity = call.get("id") or call.get("call_id") or call.get("tool_call_id")
    return ToolCall(name, arguments_of(given), None if identity is None else str(identity))


def arguments_of(given: Any) -> Mapping[str, Any] | str:
    """Arguments as an object, so that text and object give the same tokens; text that is no object stays text."""
    if isinstance(given, str):
        try:
            parsed = parsing.from_json(given) if given.strip() else {}
        except ValueError:
            return given
        return parsed if isinstance(parsed, dict) else given
    if isinstance(given, Mapping):
        return {str(key): value for key, value in given.items()}
    raise RowProblem("the arguments of a call are neither an object nor text")


def definitions(given: Any) -> tuple[Definition, ...]:
    """The tools of a row, as a list or as JSON text, each as `{"type": "function", "function": {...}}`.

    Raises:
        RowProblem: they cannot be read.
    """
    if not is_given(given):
        return ()
    parsed = _parsed(given, "the tools of the row are a text that is no JSON")
    listed = parsed if isinstance(parsed, list | tuple) else [parsed]
    return tuple(_definition(tool) for tool in listed)


def _definition(tool: Any) -> Definition:
    if isinstance(tool, str):
        tool = _parsed(tool, "a tool of the row is a text that is no JSON")
    if not isinstance(tool, Mapping):
        raise RowProblem("a tool of the row is not an object")
    if isinstance(tool.get("function"), Mapping):
        return {"type": "function", **_without_nulls(tool)}
    if not isinstance(tool.get("name"), str):
        raise RowProblem("a tool of the row has no name")
    inner = {key: value for key, value in tool.items() if key != "type"}
    if "input_schema" in inner and "parameters" not in inner:
        inner["parameters"] = inner.pop("input_schema")
    return {"type": "function", "function": _without_nulls(inner)}


def _without_nulls(value: Any) -> Any:
    """Tables fill every key that any row has with null; a definition has none of them."""
    if isinstance(value, Mapping):
        return {str(k): _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(v) for v in value]
    return value


def _parsed(value: Any, problem: str = "a call of a tool is a text that is no JSON") -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parsing.from_json(value)
    except ValueError:
        raise RowProblem(problem) from None
