"""OpenAssistant message trees: rows with `message_id` and `parent_id` become one conversation per leaf. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Row = dict[str, Any]


def is_message_tree(rows: Sequence[Row]) -> bool:
    """True when the rows are single messages that point to their parents."""
    return bool(rows) and all({"message_id", "parent_id", "text", "role"} <= row.keys() for row in rows[:50])


def conversations(rows: Sequence[Row]) -> list[Row]:
    """One `messages` row per path from a root to its best-ranked answers: at each question the answer ranked first
    (as the paper did for its OASST1 subset); paths end in an answer."""
    children: dict[Any, list[Row]] = {}
    for row in rows:
        if not row.get("deleted"):
            children.setdefault(row["parent_id"], []).append(row)
    found = []
    for root in children.get(None, []):
        path = list(_best_path(root, children))
        while path and path[-1]["role"] != "assistant":
            path.pop()
        if path:
            found.append({"messages": [{"role": m["role"], "content": m["text"]} for m in path]})
    return found


def _best_path(message: Row, children: dict[Any, list[Row]]) -> Iterator[Row]:
    while True:
        yield message
        replies = children.get(message["message_id"], [])
        if not replies:
            return
        message = min(replies, key=lambda m: (m.get("rank") is None, m.get("rank") or 0))
