"""What a dataset is, before it is read in full: in words with the evidence, and which column is what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.presenters import numerals
from app.presenters.words import bytes_text, capital, count_text, plural
from qlora_engine import row_numbers
from qlora_engine.config import DataSettings
from qlora_engine.errors import EngineError
from qlora_engine.knobs import knobs_of

ASKED_FIRST = "alpaca"
"""Whose fields are offered while no format is known: most tables are questions with answers."""
FIELD_WORDS = {
    "instruction": "Question or task", "input": "Further input", "output": "Answer", "reasoning": "Thoughts before the answer",
    "prompt": "Prompt", "completion": "Completion", "messages": "Messages", "conversations": "Turns", "text": "Text",
    "chosen": "Wanted answer", "rejected": "Unwanted answer",
}  # fmt: skip
CELL_CHARS = 400
ON_HUB = "data.hub"
"""The code of data that are not here yet."""


@dataclass(frozen=True)
class FieldLine:
    """A field of the format: `choices` are (column, words), the first of them automatic; `chosen` is one of them."""

    field: str
    title: str
    choices: tuple[tuple[str, str], ...]
    chosen: str
    is_missing: bool


@dataclass(frozen=True)
class SourceLine:
    """A further dataset; `weight` says how often each of its rows is seen in an epoch."""

    path: str
    name: str
    weight: float


@dataclass(frozen=True)
class SourceState:
    headline: str = ""
    evidence: str = ""
    tone: str = "accent"
    facts: tuple[tuple[str, ...], ...] = ()
    fields: tuple[FieldLine, ...] = ()
    titles: tuple[str, ...] = ()
    cells: tuple[tuple[str, ...], ...] = ()
    sources: tuple[SourceLine, ...] = field(default=())
    weight_text: str = ""


def source_state(
    settings: DataSettings, preview: Mapping[str, Any] | None, error: EngineError | None, is_looking: bool
) -> SourceState:
    sources = tuple(SourceLine(path, _name(path), float(weight)) for path, weight in settings.more.items())
    more = {"sources": sources, "weight_text": _weight_text(sources)}
    if error is not None:
        tone = "accent" if error.code == ON_HUB else "bad"
        return SourceState(capital(error.message), capital(error.hint), tone, **more)  # type: ignore[arg-type]
    if preview is None:
        words = "Looking at the first rows" if is_looking else ""
        return SourceState(words, **more)  # type: ignore[arg-type]
    headline, evidence, tone = _found(preview)
    return SourceState(
        headline, evidence, tone, _facts(preview), _fields(settings, preview), _titles(preview), _cells(preview), **more  # type: ignore[arg-type]
    )  # fmt: skip


def with_column(settings: DataSettings, name: str, column: str) -> dict[str, str]:
    """The mapping with `name` read from `column`; an empty column leaves it to the program."""
    kept = {known: value for known, value in settings.columns.items() if known != name}
    return {**kept, name: column} if column else kept


def columns_for(
    settings: DataSettings, format_name: str, preview: Mapping[str, Any] | None
) -> dict[str, str]:
    """What of the mapping holds for another format."""
    fields = (preview or {}).get("fields", {}).get(format_name, {})
    return {name: column for name, column in settings.columns.items() if name in fields}


def with_sources(settings: DataSettings, paths: Sequence[str]) -> dict[str, float]:
    """Further datasets, each seen once in an epoch; the dataset itself is no further one."""
    added = {path: 1.0 for path in paths if path not in settings.more and path != settings.path}
    return {**settings.more, **added}


def leave_out_without(settings: DataSettings, path: str, report: Mapping[str, Any] | None) -> str:
    """`data.leave_out` when the source `path` goes. Where it is not known how many rows it has, no row is left out."""
    if not settings.leave_out or path not in settings.more:
        return settings.leave_out
    if report is None:
        return ""
    sizes = [int(source["rows"]) for source in report["sources"]]
    place = 1 + list(settings.more).index(path)
    first = 1 + sum(sizes[:place])
    return row_numbers.closed_up(settings.leave_out, first, first + sizes[place] - 1)


def _found(preview: Mapping[str, Any]) -> tuple[str, str, str]:
    if preview["format"] is None:
        return (
            capital(str(preview["problem"])),
            "Say under \u201cHow it is read\u201d which column is what, or choose the format.",
            "warning",
        )
    label = (knobs_of(DataSettings)["format"].choices or {})[preview["format"]]
    detection = preview["detection"]
    evidence = [f"{capital(str(detection['why']))}."]
    if detection["unused"]:
        evidence.append(f"Not used: {', '.join(detection['unused'])}.")
    evidence += [f"{capital(str(question['message']))}." for question in detection["questions"]]
    tone = "warning" if detection["questions"] or detection["changes"] else "good"
    return f"These look like: {label}", " ".join(evidence), tone


def _facts(preview: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    files = list(preview["files"])
    more = int(preview["file_count"]) - len(files)
    names = ", ".join(files) + (f" and {count_text(more)} more" if more > 0 else "")
    facts: list[tuple[str, ...]] = [
        ("Files", f"{names} ({bytes_text(int(preview['bytes']))})"),
        ("Columns", ", ".join(map(str, preview["columns"])) or "none"),
    ]
    if preview["is_tree"]:
        facts.append(("Trees", "Messages with parents: each path through a tree is one conversation"))
    bad = [row for row in preview["rows"] if row["problem"]]
    if bad:
        first = bad[0]
        facts.append(
            (
                "First rows",
                f"{plural(len(bad), 'row')} cannot be read; row {count_text(first['row'])}: {first['problem']}",
            )
        )
    facts.extend(("Note", capital(str(note))) for note in preview["notes"])
    return tuple(facts)


def _fields(settings: DataSettings, preview: Mapping[str, Any]) -> tuple[FieldLine, ...]:
    known = preview["detection"]
    name = known["format"] if known else settings.format if settings.format != "auto" else ASKED_FIRST
    columns = [str(column) for column in (*preview["columns"], *preview.get("nested", ()))]
    found = dict(known["columns"]) if known else {}
    optional = set(preview["optional_fields"])
    lines = []
    for each in preview["fields"].get(name, {}):
        chosen = settings.columns.get(each, "")
        used = found.get(each, "") if not chosen else ""
        automatic = (
            f"Automatic: {used}" if used else "Automatic: none" if each in optional else "Choose a column"
        )
        if chosen and chosen not in columns:
            columns.append(chosen)
        choices = (("", automatic), *((column, column) for column in columns))
        is_missing = each not in optional and not (chosen or found.get(each))
        title = FIELD_WORDS.get(each, each) + ("" if each not in optional else " (if any)")
        lines.append(FieldLine(each, title, choices, chosen, is_missing))
    return tuple(lines)


def _titles(preview: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns, each with what it is read as."""
    detection = preview["detection"]
    known = set(map(str, preview["columns"]))
    roles: dict[str, str] = {}
    for name, path in (detection["columns"] if detection else {}).items():
        column, _, inner = (path, "", "") if path in known else path.partition(".")
        word = FIELD_WORDS.get(name, name) + (f" ({inner})" if inner else "")
        roles[column] = f"{roles[column]}, {word}" if column in roles else word
    return (
        "Row",
        *(f"{c} \u2192 {roles[c]}" if c in roles else str(c) for c in map(str, preview["columns"])),
    )


def _cells(preview: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    rows = []
    for row in preview["rows"]:
        raw = row["raw"]
        if raw is None:
            rows.append(
                (
                    count_text(row["row"]),
                    f"cannot be read: {row['problem']}",
                    *[""] * (len(preview["columns"]) - 1),
                )
            )
        else:
            rows.append(
                (count_text(row["row"]), *(str(raw.get(str(c), ""))[:CELL_CHARS] for c in preview["columns"]))
            )
    return tuple(rows)


def _name(path: str) -> str:
    return Path(path).name if Path(path).is_absolute() or path.startswith("~") else path


def _weight_text(sources: Sequence[SourceLine]) -> str:
    if not sources:
        return "Rows of other files or hub datasets can be mixed in, each as often as you say."
    half = numerals.short(0.5)
    return f"Times that each row is seen in an epoch: 2 twice, {half} a half that is always the same."
