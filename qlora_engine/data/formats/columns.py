"""The columns of rows: their names, which is which field, and reading a text out of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.formats.kind import Row
from qlora_engine.errors import EngineError, did_you_mean

SYSTEM_KEYS = ("system", "system_prompt", "system_message")
TOOL_KEYS = ("tools", "functions", "available_tools")


def names_of(rows: Sequence[Row]) -> list[str]:
    """Every column of `rows`, in the order of their appearance."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(str(name) for name in row))
    return list(names)


def match(
    format_name: str, fields: Mapping[str, tuple[str, ...]], optional: Sequence[str], columns: Sequence[str],
    chosen: Mapping[str, str],
) -> dict[str, str]:  # fmt: skip
    """Field -> column: chosen, else the first usual name that exists, whatever its capitals.

    Raises:
        EngineError: a chosen column or field does not exist, or a needed one is missing.
    """
    _require_known(format_name, fields, columns, chosen)
    found: dict[str, str] = {}
    for field, usual in fields.items():
        column = chosen.get(field) or usual_column(usual, columns, [*found.values(), *chosen.values()])
        if column is not None:
            found[field] = column
        elif field not in optional:
            raise EngineError(
                "data.columns",
                f"the format {format_name} needs a column for {field!r}, and the data has {', '.join(columns) or 'none'}",
                f'map it: data.columns = {{{field} = "..."}}',
            )
    return found


def _require_known(
    format_name: str, fields: Mapping[str, Any], columns: Sequence[str], chosen: Mapping[str, str]
) -> None:
    for field, column in chosen.items():
        if field not in fields:
            raise EngineError(
                "data.columns",
                f"the format {format_name} has no field {field!r}",
                did_you_mean(field, fields),
            )
        if column not in columns:
            raise EngineError(
                "data.columns", f"the data has no column {column!r}", did_you_mean(column, columns)
            )


def usual_column(usual: Sequence[str], columns: Sequence[str], taken: Sequence[str] = ()) -> str | None:
    """The first column that has one of the usual names."""
    by_name = {column.strip().lower(): column for column in reversed(columns) if column not in taken}
    return next((by_name[name] for name in usual if name in by_name), None)


def by_names(
    fields: Mapping[str, tuple[str, ...]], optional: Sequence[str] = ()
) -> Callable[[Sequence[Row], Sequence[str], Mapping[str, str]], str]:
    """A test for formats that are known by the names of their columns."""

    def test(rows: Sequence[Row], columns: Sequence[str], chosen: Mapping[str, str]) -> str:
        if chosen and not set(chosen) <= set(fields):
            return ""
        found: list[str] = []
        for field, usual in fields.items():
            if field in optional:
                continue
            column = chosen.get(field) or usual_column(usual, columns, found)
            if column is None or column in found:
                return ""
            found.append(column)
        return f"it has the columns {' and '.join(found)}"

    return test


def text_of(row: Row, column: str, field: str, *, may_be_empty: bool = False) -> str:
    """The text in a column; a number is its own text.

    Raises:
        RowProblem: it is missing, empty or no text.
    """
    value = row.get(column)
    if "." in column and isinstance(value, list | tuple) and value:
        value = value[0]  # several right answers, as sets of questions about a text have them
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise RowProblem(f"its {field} is missing")
    if not value.strip() and not may_be_empty:
        raise RowProblem(f"its {field} is empty")
    return value
