"""What stands beside the turns of a row in several formats: a system prompt, definitions of tools, reasoning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_engine.data.conversation import Message
from qlora_engine.data.formats import calls
from qlora_engine.data.formats.columns import SYSTEM_KEYS, TOOL_KEYS
from qlora_engine.data.formats.kind import Keys, Row, is_given


def with_system(row: Row, messages: Sequence[Message], keys: Keys) -> list[Message]:
    """The turns with the row's own system prompt in front, unless they begin with one."""
    for key in SYSTEM_KEYS:
        value = row.get(key)
        if not isinstance(value, str):
            continue
        keys.use(key)
        if value.strip() and not (messages and messages[0].role in ("system", "developer")):
            return [Message("system", value), *messages]
    return list(messages)


def tools_of(row: Row, keys: Keys) -> tuple[Mapping[str, Any], ...]:
    """The definitions of the row's tools.

    Raises:
        RowProblem: they cannot be read.
    """
    for key in TOOL_KEYS:
        if is_given(row.get(key)):
            keys.use(key)
            return calls.definitions(row[key])
    return ()
