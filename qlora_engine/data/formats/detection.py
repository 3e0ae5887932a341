"""Finds out how rows are to be read, says why, and reads each with an account of its keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qlora_engine.config import DataSettings
from qlora_engine.data.conversation import Conversation, RowProblem
from qlora_engine.data.formats import (
    alpaca,
    columns,
    marks,
    messages,
    nested,
    oasst,
    preference,
    prompt_completion,
    sharegpt,
    text,
    tool_questions,
    transcript,
    turns,
)
from qlora_engine.data.formats.kind import Detection, Format, Keys, Row, Said, meaning_of
from qlora_engine.errors import EngineError

SAMPLE_ROWS = 50
MOST_NAMED = 30
WRITTEN_OUT = ("text", "transcript", "oasst")
"""Formats of one text, which is a row's own: inside another column a text may be anything."""
FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        preference,
        sharegpt,
        messages,
        tool_questions,
        oasst,
        alpaca,
        prompt_completion,
        transcript,
        text,
    )
}
"""In the order in which they are tried."""
FIELDS = {name: dict(kind.fields) for name, kind in FORMATS.items()}
OPTIONAL_FIELDS = {field for kind in FORMATS.values() for field in kind.optional}


def detect(rows: Sequence[Row], settings: DataSettings) -> Detection:
    """The format and columns: as asked, else from the columns of the first rows.

    Raises:
        EngineError: no format fits, or a mapped column does not exist.
    """
    sample = rows[:SAMPLE_ROWS]
    names, inner = columns.names_of(sample), nested.names_in(sample)
    if settings.format != "auto":
        return _detected(FORMATS[settings.format], "as chosen", sample, names, inner, settings)
    is_mapped = any(column in inner for column in settings.columns.values())
    for known in ([*names, *inner],) if is_mapped else (names, [*names, *inner]):
        found = _fitting(sample, known, inner, settings)
        if found is not None:
            return found
    found = _fitting_inside(sample, inner, settings)
    if found is not None:
        return found
    raise EngineError(
        "data.format",
        f"the columns {', '.join([*names, *inner][:MOST_NAMED]) or '(none)'} fit no known format",
        _mapping_hint(inner),
    )


def _fitting(
    sample: Sequence[Row], known: Sequence[str], inner: Sequence[str], settings: DataSettings
) -> Detection | None:
    rows = [nested.opened(row, [name for name in known if name in inner]) for row in sample]
    for kind in FORMATS.values():
        why = kind.test(rows, known, settings.columns)
        if why:
            return _detected(kind, why, sample, known, inner, settings)
    return None


def _fitting_inside(sample: Sequence[Row], inner: Sequence[str], settings: DataSettings) -> Detection | None:
    """Rows whose columns stand together in one that holds objects."""
    for parent in nested.parents_in(sample):
        rows = [nested.lifted(row, parent) for row in sample]
        names = columns.names_of(rows)
        for kind in FORMATS.values():
            why = "" if kind.name in WRITTEN_OUT else kind.test(rows, names, settings.columns)
            if not why:
                continue
            mapping = columns.match(kind.name, kind.fields, kind.optional, names, {})
            paths = {f: f"{parent}.{c}" if f"{parent}.{c}" in inner else c for f, c in mapping.items()}
            mapped = replace(settings, columns={**paths, **settings.columns})
            return _detected(kind, f"in {parent!r} {why}", sample, [*names, *paths.values()], inner, mapped)
    return None


def _mapping_hint(inner: Sequence[str]) -> str:
    first, second = inner[:2] if len(inner) > 1 else ("question", "answer")
    fields = ("prompt", "completion") if len(inner) > 1 else ("instruction", "output")
    return f'choose data.format, and map columns such as data.columns = {{{fields[0]} = "{first}", {fields[1]} = "{second}"}}'


def read_row(row: Row, number: int, detection: Detection) -> Conversation:
    """One row in the detected format; what was not used of it is named.

    Raises:
        RowProblem: it lacks something, or carries what would change its meaning, with the reason.
    """
    try:
        said, keys = _read(row, detection)
        keys.require_meaning(detection.ignore)
        if said.text is not None:
            return Conversation(number, text=said.text, unused=tuple(keys.unused))
        return Conversation(number, turns.finished(said.messages), said.tools, unused=tuple(keys.unused))
    except RowProblem as problem:
        raise RowProblem(problem.reason, number) from None
    except RecursionError:
        raise RowProblem("it is nested too deep", number) from None


def require_settled(detection: Detection) -> None:
    """Refuse to train before a person has decided what only a person can.

    Raises:
        EngineError: there is an open question.
    """
    for question in detection.questions:
        choices = " or ".join(f'{question.setting} = "{value}"' for value in question.values)
        raise EngineError(question.code, question.message, f"say so with {choices}")


def _read(row: Row, detection: Detection) -> tuple[Said, Keys]:
    keys = Keys()
    row = nested.opened(row, detection.nested)
    said = FORMATS[detection.format].read(row, detection, keys)
    if said.text is None:
        marks.require_wanted(row, detection, keys)
    keys.left(row)
    return said, keys


def _detected(
    kind: Format,
    why: str,
    sample: Sequence[Row],
    known: Sequence[str],
    inner: Sequence[str],
    settings: DataSettings,
) -> Detection:
    chosen = [column for column in settings.columns.values() if column in inner]
    mapping = columns.match(kind.name, kind.fields, kind.optional, [*known, *chosen], settings.columns)
    is_open = kind.name == "preference" and settings.preference != "chosen"
    detection = Detection(
        kind.name, mapping, why, ignore=tuple(settings.ignore),
        questions=(preference.QUESTION,) if is_open else (), wants_chosen=settings.preference == "chosen",
        nested=tuple(column for column in mapping.values() if column in inner),
    )  # fmt: skip
    return _with_keys(detection, sample)


def _with_keys(detection: Detection, sample: Sequence[Row]) -> Detection:
    """The account of every key of the first rows."""
    used: dict[str, None] = {}
    unused: dict[str, None] = {}
    for row in sample:
        try:
            _, keys = _read(row, detection)
        except (RowProblem, RecursionError):
            continue
        used |= keys.used
        unused |= keys.unused
    left = tuple(key for key in unused if key not in used)
    return replace(
        detection, used=tuple(used), unused=left, changes=tuple(key for key in left if meaning_of(key))
    )
