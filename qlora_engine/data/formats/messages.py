"""Chat messages in the OpenAI form: role and content, calls, tools, reasoning, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.formats import context, pairs, turns
from qlora_engine.data.formats.kind import Detection, Format, Keys, Row, Said, is_given

FIELDS = {
    "messages": (
        "messages",
        "chat",
        "dialog",
        "dialogue",
        "conversations",
        "conversation",
        "turns",
        "data",
        "rounds",
    )
}


def read(row: Row, detection: Detection, keys: Keys) -> Said:
    column = next(iter(detection.columns.values()))
    keys.use(column)
    listed = turns.from_json_list(row.get(column), "conversation")
    read_turns = pairs.read if pairs.kind_of(listed) else turns.read_turns
    talk = read_turns(listed, keys, f"{column}[].")
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
        if column in columns and (kind := _kind_of_pairs(rows, column)):
            return f"the column {column!r} holds {kind}"
    return ""


def _kind_of_pairs(rows: Sequence[Row], column: str) -> str:
    """What all lists of the column hold alike; one list of texts among other things is no conversation."""
    listed = [row.get(column) for row in rows if is_given(row.get(column))]
    kinds = {pairs.kind_of(one) if isinstance(one, list | tuple) else "" for one in listed}
    return kinds.pop() if len(kinds) == 1 else ""


FORMAT = Format("messages", "Chat messages (role, content)", FIELDS, test, read)
