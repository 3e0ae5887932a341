"""A question, the tools at hand and the calls that answer it, in columns of their own: how sets for calling functions come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_engine.data.conversation import Message, RowProblem
from qlora_engine.data.formats import calls, columns, context
from qlora_engine.data.formats.kind import Detection, Format, Keys, Row, Said, is_given

FIELDS = {
    "question": ("query", "question", "prompt", "instruction", "user", "input"),
    "tools": columns.TOOL_KEYS,
    "calls": ("answers", "calls", "tool_calls", "function_calls", "answer", "output", "completion"),
}
JSON_TYPES = {
    "str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "tuple": "array", "dict": "object",
}  # fmt: skip
"""Types as Python names them, and as JSON schema does."""
MAY_BE_LEFT_OUT = ", optional"


def test(rows: Sequence[Row], names: Sequence[str], chosen: Mapping[str, str]) -> str:
    """The columns exist, and what answers is calls in the first rows that have an answer."""
    usual = [chosen.get(field) or columns.usual_column(known, names) for field, known in FIELDS.items()]
    found = [column for column in usual if column is not None]
    if len(set(found)) < len(FIELDS):
        return ""
    answers = [row.get(found[2]) for row in rows if is_given(row.get(found[2]))]
    if not answers or not all(_is_calls(answer) for answer in answers):
        return ""
    return f"it has the columns {found[0]} and {found[1]}, and calls of tools in {found[2]}"


def read(row: Row, detection: Detection, keys: Keys) -> Said:
    question, tools, answer = (detection.columns[field] for field in FIELDS)
    keys.use(question, tools, answer)
    if not is_given(row.get(answer)):
        raise RowProblem("its calls are missing")
    talk = [
        Message("user", columns.text_of(row, question, "question")),
        Message("assistant", "", calls=calls.from_text(row[answer])),
    ]
    defined = tuple(_with_schema(tool) for tool in calls.definitions(row.get(tools)))
    return Said(tuple(context.with_system(row, talk, keys)), defined)


def _is_calls(value: Any) -> bool:
    try:
        calls.from_text(value)
    except RowProblem:
        return False
    return True


def _with_schema(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Parameters as JSON schema, which templates expect, where a set lists them by name alone."""
    inner = tool["function"]
    given = inner.get("parameters")
    if (
        not isinstance(given, Mapping)
        or not given
        or "properties" in given
        or not all(map(_is_parameter, given.values()))
    ):
        return tool
    properties = {name: _parameter(one) for name, one in given.items()}
    required = [name for name, one in given.items() if "default" not in one and not _may_be_left_out(one)]
    schema = {"type": "object", "properties": properties, **({"required": required} if required else {})}
    return {**tool, "function": {**inner, "parameters": schema}}


def _is_parameter(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("type"), str)


def _may_be_left_out(parameter: Mapping[str, Any]) -> bool:
    return str(parameter["type"]).endswith(MAY_BE_LEFT_OUT)


def _parameter(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """`str, optional` is a string; `List[int]` an array."""
    named = str(given["type"]).removesuffix(MAY_BE_LEFT_OUT).strip()
    outer = named.split("[", 1)[0].lower()
    return {**given, "type": JSON_TYPES.get(outer, named)}


FORMAT = Format("tool_questions", "Questions answered by calls (query, tools, answers)", FIELDS, test, read)
