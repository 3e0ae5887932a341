"""OpenAssistant message trees: rows with `message_id` and `parent_id` become conversations. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def is_message_tree(rows: Sequence[Row]) -> bool:
    """True when the rows are single messages that point to their parents."""
    return bool(rows) and all({"message_id", "parent_id", "text", "role"} <= row.keys() for row in rows[:50])


def conversations(rows: Iterable[Row], paths: str = "best") -> Iterator[dict[str, Any]]:
    """`messages` rows, each a path from a root that ends in an answer. `best`: at each question the answer ranked first
    (as the paper did for its OASST1 subset); `all`: every path."""
    children: dict[Any, list[Row]] = {}
    for row in rows:
        if not row.get("deleted"):
            children.setdefault(row.get("parent_id"), []).append(row)
    seen: set[tuple[Any, ...]] = set()
    for root in children.get(None, []):
        for path in _all_paths(root, children) if paths == "all" else [list(_best_path(root, children))]:
            while path and path[-1].get("role") != "assistant":
                path.pop()
            name = tuple(str(message.get("message_id")) for message in path)
            if path and name not in seen:
                seen.add(name)
                yield {"messages": [{"role": m.get("role"), "content": m.get("text")} for m in path]}


def _best_path(message: Row, children: dict[Any, list[Row]]) -> Iterator[Row]:
    seen: set[str] = set()
    while str(message.get("message_id")) not in seen:
        seen.add(str(message.get("message_id")))
        yield message
        replies = children.get(message.get("message_id"), [])
        if not replies:
            return
        message = min(replies, key=_rank)


def _rank(message: Row) -> tuple[bool, float]:
    rank = message.get("rank")
    return (False, float(rank)) if isinstance(rank, int | float) else (True, 0.0)


def _all_paths(root: Row, children: dict[Any, list[Row]]) -> Iterator[list[Row]]:
    waiting = [[root]]
    while waiting:
        path = waiting.pop()
        names = {str(message.get("message_id")) for message in path}
        replies = [
            r for r in children.get(path[-1].get("message_id"), []) if str(r.get("message_id")) not in names
        ]
        if not replies:
            yield path
        waiting.extend([*path, reply] for reply in sorted(replies, key=_rank, reverse=True))
