"""Finds out how rows are to be read and turns each into a conversation or a text. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_engine import parsing
from qlora_engine.config import DataSettings
from qlora_engine.errors import EngineError, did_you_mean

Row = Mapping[str, Any]
Message = dict[str, str]
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user", "question": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
    "answer": "assistant", "tool": "tool", "observation": "tool", "function": "tool",
}  # fmt: skip
FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "alpaca": {
        "instruction": ("instruction", "question", "query", "task"),
        "input": ("input", "context"),
        "output": ("output", "response", "answer", "target", "completion"),
    },
    "sharegpt": {"conversations": ("conversations", "conversation", "dialog", "dialogue")},
    "messages": {"messages": ("messages", "chat", "dialog", "conversations", "conversation")},
    "prompt_completion": {
        "prompt": ("prompt", "input", "source"),
        "completion": ("completion", "response", "output", "chosen", "target"),
    },
    "oasst": {"text": ("text",)},
    "text": {"text": ("text", "content", "document")},
}
OPTIONAL_FIELDS = {"input"}
OASST_TURN = re.compile(r"(?<!#)###\s*(Human|Assistant|User)\s*:")
"""A turn begins anywhere: the dataset of the paper's Guanaco models writes most answers on the question's own line."""
SAMPLE_ROWS = 50


@dataclass(frozen=True)
class Detection:
    """How rows are read: `columns` maps each field of the format to a column; `why` is a sentence."""

    format: str
    columns: dict[str, str]
    why: str


@dataclass(frozen=True)
class Example:
    """One row as a conversation, or as plain text. `number` is its place in the data, from 1."""

    number: int
    messages: tuple[Message, ...] = ()
    text: str | None = None


class RowProblem(Exception):  # noqa: N818 - carries a reason, is counted, never seen by a person as an error
    """A row that cannot be used; its text is the reason."""


def detect(rows: Sequence[Row], settings: DataSettings) -> Detection:
    """The format and columns: as asked, else from the columns of the first rows.

    Raises:
        EngineError: no format fits, or a mapped column does not exist.
    """
    columns = _column_names(rows)
    if settings.format != "auto":
        mapping = _mapping(settings.format, columns, settings.columns)
        return Detection(settings.format, mapping, "as chosen")
    for name, test in _TESTS:
        why = test(rows[:SAMPLE_ROWS], columns, settings.columns)
        if why:
            return Detection(name, _mapping(name, columns, settings.columns), why)
    raise EngineError(
        "data.format",
        f"the columns {', '.join(columns) or '(none)'} fit no known format",
        'choose data.format, and map columns such as data.columns = {instruction = "question", output = "answer"}',
    )


def read_row(row: Row, number: int, detection: Detection) -> Example:
    """One row in the detected format.

    Raises:
        RowProblem: it lacks something, with the reason.
    """
    if detection.format == "text":
        return Example(number, text=_string(row, detection.columns["text"], "text"))
    messages = _READERS[detection.format](row, detection.columns)
    _check_conversation(messages)
    return Example(number, messages=tuple(messages))


def _alpaca(row: Row, columns: Mapping[str, str]) -> list[Message]:
    instruction = _string(row, columns["instruction"], "instruction")
    extra = row.get(columns.get("input", ""), "") or ""
    prompt = f"{instruction}\n\n{extra}" if str(extra).strip() else instruction
    messages = _history(row)
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        messages.insert(0, {"role": "system", "content": system})
    answer = _string(row, columns["output"], "output")
    return [*messages, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _history(row: Row) -> list[Message]:
    """Earlier turns as LLaMA-Factory stores them: a list of [question, answer]."""
    history = row.get("history") or []
    if not isinstance(history, list):
        return []
    return [
        message
        for pair in history
        if isinstance(pair, list) and len(pair) == 2
        for message in (
            {"role": "user", "content": str(pair[0])},
            {"role": "assistant", "content": str(pair[1])},
        )
    ]


def _prompt_completion(row: Row, columns: Mapping[str, str]) -> list[Message]:
    prompt, completion = row.get(columns["prompt"]), row.get(columns["completion"])
    if isinstance(prompt, list) and isinstance(completion, list):
        return _turns([*prompt, *completion])
    return [
        {"role": "user", "content": _string(row, columns["prompt"], "prompt")},
        {"role": "assistant", "content": _string(row, columns["completion"], "completion")},
    ]


def _messages(row: Row, columns: Mapping[str, str]) -> list[Message]:
    turns = row.get(next(iter(columns.values())))
    if isinstance(turns, str):
        try:
            turns = parsing.from_json(turns)
        except ValueError:
            raise RowProblem("its conversation is a text, not a list of turns") from None
    if not isinstance(turns, list) or not turns:
        raise RowProblem("it has no conversation")
    messages = _turns(turns)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _turns(turns: Sequence[Any]) -> list[Message]:
    messages = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise RowProblem("a turn is not an object")
        role = str(turn.get("role", turn.get("from", ""))).strip().lower()
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
        if role not in ROLES:
            raise RowProblem(f"a turn has the unknown role {role!r}")
        if not isinstance(content, str):
            raise RowProblem(f"a turn of {role} has no text")
        messages.append({"role": ROLES[role], "content": content})
    return messages


def _oasst(row: Row, columns: Mapping[str, str]) -> list[Message]:
    text = _string(row, columns["text"], "text")
    marks = list(OASST_TURN.finditer(text))
    if not marks:
        raise RowProblem("it has no '### Human:' and '### Assistant:' turns")
    messages = []
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        content = text[mark.end() : after.start() if after else len(text)].strip()
        role = "assistant" if mark[1] == "Assistant" else "user"
        messages.append({"role": role, "content": content})
    return messages


def _check_conversation(messages: Sequence[Message]) -> None:
    """A conversation must have an answer to train on, and answers must follow something (CORRECTNESS 23)."""
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        raise RowProblem("it has no answer")
    if all(not m["content"].strip() for m in answers):
        raise RowProblem("its answer is empty")
    asked = [m for m in messages if m["role"] in ("user", "tool")]
    if not asked or all(not m["content"].strip() for m in asked):
        raise RowProblem("its question is empty")


def _string(row: Row, column: str, field: str) -> str:
    value = row.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise RowProblem(f"its {field} is missing")
    if not value.strip():
        raise RowProblem(f"its {field} is empty")
    return value


def _column_names(rows: Sequence[Row]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows[:SAMPLE_ROWS]:
        names.update(dict.fromkeys(str(name) for name in row))
    return list(names)


def _mapping(name: str, columns: Sequence[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """Field -> column: chosen, else the first usual name that exists.

    Raises:
        EngineError: a chosen column or field does not exist, or a needed one is missing.
    """
    fields = FIELDS[name]
    for field, column in chosen.items():
        if field not in fields:
            raise EngineError(
                "data.columns", f"the format {name} has no field {field!r}", did_you_mean(field, fields)
            )
        if column not in columns:
            raise EngineError(
                "data.columns", f"the data has no column {column!r}", did_you_mean(column, columns)
            )
    found: dict[str, str] = {}
    for field, usual in fields.items():
        match = chosen.get(field) or next(
            (c for c in usual if c in columns and c not in found.values()), None
        )
        if match is not None:
            found[field] = match
        elif field not in OPTIONAL_FIELDS:
            raise EngineError(
                "data.columns",
                f"the format {name} needs a column for {field!r}, and the data has {', '.join(columns) or 'none'}",
                f'map it: data.columns = {{{field} = "..."}}',
            )
    return found


def _is_turn_list(rows: Sequence[Row], column: str, role_key: str, text_key: str) -> bool:
    for row in rows:
        turns = row.get(column)
        if isinstance(turns, list) and turns and isinstance(turns[0], Mapping):
            return role_key in turns[0] and text_key in turns[0]
    return False


def _test_sharegpt(rows: Sequence[Row], columns: Sequence[str], chosen: Mapping[str, str]) -> str:
    for column in (*chosen.values(), *FIELDS["sharegpt"]["conversations"]):
        if column in columns and _is_turn_list(rows, column, "from", "value"):
            return f"the column {column!r} holds turns with from and value"
    return ""


def _test_messages(rows: Sequence[Row], columns: Sequence[str], chosen: Mapping[str, str]) -> str:
    for column in (*chosen.values(), *FIELDS["messages"]["messages"]):
        if column in columns and _is_turn_list(rows, column, "role", "content"):
            return f"the column {column!r} holds turns with role and content"
    return ""


def _test_named(name: str) -> Callable[[Sequence[Row], Sequence[str], Mapping[str, str]], str]:
    def test(rows: Sequence[Row], columns: Sequence[str], chosen: Mapping[str, str]) -> str:
        if chosen and not set(chosen) <= set(FIELDS[name]):
            return ""
        needed = {f: usual for f, usual in FIELDS[name].items() if f not in OPTIONAL_FIELDS}
        found = [
            chosen.get(f) or next((c for c in usual if c in columns), None) for f, usual in needed.items()
        ]
        if None in found or len(set(found)) < len(found):
            return ""
        return f"it has the columns {' and '.join(str(c) for c in found)}"

    return test


def _test_oasst(rows: Sequence[Row], columns: Sequence[str], chosen: Mapping[str, str]) -> str:
    texts = [row.get("text") for row in rows]
    if texts and all(isinstance(t, str) and OASST_TURN.search(t) for t in texts):
        return "its texts have '### Human:' and '### Assistant:' turns"
    return ""


_TESTS = (
    ("sharegpt", _test_sharegpt),
    ("messages", _test_messages),
    ("oasst", _test_oasst),
    ("alpaca", _test_named("alpaca")),
    ("prompt_completion", _test_named("prompt_completion")),
    ("text", _test_named("text")),
)
_READERS: dict[str, Callable[[Row, Mapping[str, str]], list[Message]]] = {
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "sharegpt": _messages,
    "oasst": _oasst,
}
