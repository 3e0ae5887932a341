"""ShareGPT: conversations of turns with from and value; function_call and observation are calls and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlora_engine.data.formats import messages
from qlora_engine.data.formats.kind import Format, Row

FIELDS = {"conversations": ("conversations", "conversation", "dialog", "dialogue", "messages")}


def test(rows: Sequence[Row], columns: Sequence[str], chosen: Mapping[str, str]) -> str:
    for column in (*chosen.values(), *FIELDS["conversations"]):
        if column in columns and messages.is_turn_list(rows, column, "from", ("value",)):
            return f"the column {column!r} holds turns with from and value"
    return ""


FORMAT = Format("sharegpt", "ShareGPT (conversations: from, value)", FIELDS, test, messages.read)
