"""Columns inside columns: `translation.en` of `{"translation": {"en": ..., "fr": ...}}`, `answers.text` of a list of objects.

A list stands for its first entry. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qlora_engine.data.formats.kind import Row

DEEPEST = 3
MOST_KEYS = 40
"""A column with more keys than that is no table inside a table, but an index."""


def names_in(rows: Sequence[Row]) -> list[str]:
    """Every nested column of `rows`, in the order of their appearance."""
    found: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            found.update(dict.fromkeys(_below(str(name), value, DEEPEST)))
    return list(found)


def _below(path: str, value: Any, levels: int) -> Iterator[str]:
    inner = _entry(value)
    if not isinstance(inner, Mapping) or not levels or len(inner) > MOST_KEYS:
        return
    for key, held in inner.items():
        yield f"{path}.{key}"
        yield from _below(f"{path}.{key}", held, levels - 1)


def parents_in(rows: Sequence[Row]) -> list[str]:
    """The columns that hold objects in every row that has them."""
    given: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                given.setdefault(str(name), []).append(_entry(value))
    return [name for name, values in given.items() if all(isinstance(value, Mapping) for value in values)]


def lifted(row: Row, parent: str) -> Row:
    """The row with what stands in `parent` among its own columns."""
    inner = _entry(row.get(parent))
    others = {name: value for name, value in row.items() if name != parent}
    return {**others, **inner} if isinstance(inner, Mapping) else others


def opened(row: Row, paths: Sequence[str]) -> Row:
    """The row with these nested columns beside its own; what else their columns hold stands under a path of its own."""
    wanted = [path for path in paths if path not in row and "." in path]
    if not wanted:
        return row
    found: dict[str, Any] = {}
    for name, value in row.items():
        inner = [path for path in wanted if path.startswith(f"{name}.")]
        found.update(_leaves(name, value, inner) if inner else {name: value})
    return found


def _leaves(path: str, value: Any, wanted: Sequence[str]) -> Iterator[tuple[str, Any]]:
    entry = _entry(value)
    if path in wanted or not isinstance(entry, Mapping):
        yield path, value
        return
    for key, held in entry.items():
        inner = f"{path}.{key}"
        if any(one == inner or one.startswith(f"{inner}.") for one in wanted):
            yield from _leaves(inner, held, wanted)
        else:
            yield inner, held


def _entry(value: Any) -> Any:
    """What a list of objects is read as: its first."""
    return value[0] if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping) else value
