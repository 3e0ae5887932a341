"""Chat messages in the OpenAI form: role and content, calls, tools, reasoning, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.formats import context, turns
from qlora_engine.data.formats.kind import Detection, Format, Keys, Row, Said

FIELDS = {"messages": ("messages", "chat", "dialog", "dialogue", "conversations", "conversation", "turns")}


def read(row: Row, detection: Detection, keys: Keys) -> Said:
    column = next(iter(detection.columns.values()))
    keys.use(column)
    listed = turns.from_json_list(row.get(column), "conversation")
    talk = turns.read_turns(listed, keys, under=f"{column}[].")
    return Said(tuple(context.with_system(row, talk, keys)), context.tools_of(row, keys))


def is_turn_list(rows: Sequence[Row], column: str, role_key: str, text_keys: Sequence[str]) -> bool:
    """Whether the column holds lists of turns with these keys, or JSON texts of such lists."""
    for row in rows:
        try:
            listed = turns.from_json_list(row.get(column), column)
        except RowProblem:
            continue
        found: set[str] = set()
        for turn in listed:
            found |= set(turn) if isinstance(turn, Mapping) else set()
        return role_key in found and bool(found & set(text_keys))
    return False


def test(rows: Sequence[Row], columns: Sequence[str], chosen: Mapping[str, str]) -> str:
    for column in (*chosen.values(), *FIELDS["messages"]):
        if column in columns and is_turn_list(rows, column, "role", turns.TEXT_KEYS):
            return f"the column {column!r} holds turns with role and content"
    return ""


FORMAT = Format("messages", "Chat messages (role, content)", FIELDS, test, read)
