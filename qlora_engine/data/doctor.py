"""What is wrong with a dataset, graded: it blocks the start, is to be looked at, or is good to know. Torch-free.

`qlora data`, `qlora check`, the window and the start of a run all ask here, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from qlora_engine import row_numbers
from qlora_engine.config import DataSettings
from qlora_engine.counting import agreeing, counted, pronoun
from qlora_engine.data import report as reports
from qlora_engine.data import working
from qlora_engine.data.formats import Detection, marks
from qlora_engine.data.formats.kind import IN_WORDS, MEANINGS
from qlora_engine.data.grades import BLOCKS, GRADES, LOOK, NOTE, Finding, first_blocking
from qlora_engine.data.report import EXAMPLES_NAMED, DataReport, Found
from qlora_engine.data.sources import RowStore

MANY_BAD = 0.05
Place = Callable[[int], tuple[str, int]]
"""The file that holds a row, and the row's number in it."""
WRITE_CLEAN = {"action": "write_clean"}


def findings(found: Found, report: DataReport, settings: DataSettings) -> tuple[Finding, ...]:
    """Everything worth saying, the gravest first."""
    kinds = (
        _open_questions,
        _left_out,
        _nothing,
        _cuts,
        _held_out,
        _copies,
        _ends,
        _thoughts,
        _contents,
        _privacy,
        _keys,
    )
    all_found = [finding for kind in kinds for finding in kind(found, report, settings)]
    all_found.extend(Finding(NOTE, "data.reading", f"{note}.") for note in found.store.notes)
    return tuple(sorted(all_found, key=lambda finding: GRADES.index(finding.grade)))


def require_start(all_found: Iterable[Finding | Mapping[str, Any]]) -> None:
    """Refuse to train on data that blocks.

    Raises:
        EngineError: the first finding that does.
    """
    error = first_blocking(all_found)
    if error is not None:
        raise error


def _open_questions(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    yield from open_questions(found.store, found.detections)


def open_questions(store: RowStore, detections: Sequence[Detection]) -> Iterator[Finding]:
    """What only a person can decide."""
    for source, detection in zip(store.sources, detections, strict=True):
        for question in detection.questions:
            choices = " or ".join(f'{question.setting} = "{value}"' for value in question.values)
            repair = {"setting": question.setting, "value": question.values[0]}
            yield Finding(
                BLOCKS, question.code, question.message, len(source), (), repair, f"say so with {choices}"
            )


def _left_out(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    left = row_numbers.parsed(settings.leave_out)
    total = len(found.store)
    bad = reports.Drops(unread(found.tokens.problems, left))
    most = total - row_numbers.count(row_numbers.within(left, total))
    yield from left_out(bad, most, report.format, settings.bad_rows, found.store.place)
    yield from by_hand(left, total)
    if found.has_held_out_file:
        yield from _held_left_out(reports.Drops(found.held_tokens.problems), found.held_tokens.numbers)


def unread(problems: Mapping[str, Sequence[int]], left: row_numbers.Ranges) -> dict[str, list[int]]:
    """Rows that cannot be used, without those that a person left out already."""
    if not left:
        return {reason: list(rows) for reason, rows in problems.items()}
    return {reason: [n for n in rows if not row_numbers.holds(left, n)] for reason, rows in problems.items()}


def by_hand(left: row_numbers.Ranges, total: int) -> Iterator[Finding]:
    """What a person left out, which is said so that it is not forgotten. `total` rows there are."""
    here = row_numbers.within(left, total)
    back = {"setting": "data.leave_out", "value": ""}
    if here:
        count = row_numbers.count(here)
        rows = tuple(islice((n for first, last in here for n in range(first, last + 1)), EXAMPLES_NAMED))
        yield Finding(
            NOTE, "data.leave_out", f"{counted(count, 'row')} left out as data.leave_out says.", count, rows, back,
            "take it back" if count == 1 else "take them back",
        )  # fmt: skip
    if left and left[-1][1] > total:
        text = f"data.leave_out names row {left[-1][1]:,}, and the data end with row {total:,}."
        kept = {"setting": "data.leave_out", "value": row_numbers.text_of(here)}
        yield Finding(LOOK, "data.no_such_row", text, 0, (), kept, "name only rows that there are")


def _held_left_out(bad: reports.Drops, total: int) -> Iterator[Finding]:
    grade = LOOK if bad.count > MANY_BAD * total else NOTE
    for reason in bad.reasons():
        text = f"{counted(reason['count'], 'row')} of the held-out file left out: {reason['reason']}."
        yield Finding(
            grade, "data.held_left_out", text, reason["count"], held_rows=tuple(reason["first_rows"])
        )


def left_out(
    bad: reports.Drops, total: int, format_name: str, most: float, place: Place
) -> Iterator[Finding]:
    """Rows that cannot be used: each reason, or that they are too many."""
    bad, unwanted = _without_unwanted(bad)
    total -= len(unwanted)
    if unwanted:
        count = len(unwanted)
        yield Finding(
            NOTE, "data.unwanted", f"{counted(count, 'row')} left out as data.preference says: {marks.UNWANTED}.",
            count, tuple(unwanted[:EXAMPLES_NAMED]),
        )  # fmt: skip
    if not bad.count:
        return
    yield from _changed_meaning(bad, total)
    share = bad.count / max(1, total)
    rows = tuple(bad.numbers[:EXAMPLES_NAMED])
    if share > most or bad.count == total:
        yield Finding(
            BLOCKS, "data.columns",
            f"{counted(bad.count, 'row', of=total)} cannot be read as {format_name}, the first in {_words(place(rows[0]))}: "
            f"{bad.summary()}",
            bad.count, rows, None, "check data.format and data.columns, or allow more with data.bad_rows",
            leave_out="" if bad.count == total else _short(bad.numbers),
        )  # fmt: skip
        return
    grade = LOOK if share > MANY_BAD else NOTE
    for reason in bad.reasons():
        if _carried(reason["reason"]):
            continue  # told above, with what a person can say of it
        text = f"{counted(reason['count'], 'row')} left out: {reason['reason']}."
        yield Finding(
            grade, "data.left_out", text, reason["count"], tuple(reason["first_rows"]), WRITE_CLEAN,
            "keep the other rows as a file of their own",
        )  # fmt: skip


def _without_unwanted(bad: reports.Drops) -> tuple[reports.Drops, list[int]]:
    """(rows that cannot be used, those whose answer a person does not want: nothing is wrong with them)."""
    is_asked = {reason: marks.UNWANTED in reason and not _carried(reason) for reason, _ in bad.items()}
    others = reports.Drops({reason: rows for reason, rows in bad.items() if not is_asked[reason]})
    return others, sorted(n for reason, rows in bad.items() if is_asked[reason] for n in rows)


def _changed_meaning(bad: reports.Drops, total: int) -> Iterator[Finding]:
    """Rows left out because of what they carry besides text: whether to train them without it only a person can say."""
    for kind in MEANINGS:
        for is_marked in (True, False):
            reasons = [
                r for r, _ in bad.items() if _carried(r) == kind and (marks.UNWANTED in r) == is_marked
            ]
            rows = sorted(n for reason, numbers in bad.items() if reason in reasons for n in numbers)
            if rows:
                finding = _unwanted(rows, reasons[0]) if is_marked else _carrying(kind, rows, reasons[0])
                yield replace(finding, grade=BLOCKS if len(rows) > MANY_BAD * total else LOOK)


def _unwanted(rows: Sequence[int], reason: str) -> Finding:
    """Answers marked as wanted or not: what becomes of the unwanted ones only a person can say."""
    return Finding(
        BLOCKS, "data.marked", f"{counted(len(rows), 'row', 'have')} an answer that is not wanted: {reason}.",
        len(rows), tuple(rows[:EXAMPLES_NAMED]), {"setting": "data.preference", "value": "chosen"},
        "train the wanted answers alone", leave_out=_short(rows),
    )  # fmt: skip


def _carrying(kind: str, rows: Sequence[int], reason: str) -> Finding:
    count = len(rows)
    return Finding(
        BLOCKS, "data.meaning",
        f"{counted(count, 'row', 'carry')} {IN_WORDS[kind]}, which change what a row means and are not used: {reason}.",
        count, tuple(rows[:EXAMPLES_NAMED]), {"setting": "data.ignore", "value": [kind], "adds": True},
        f"train {'this row' if count == 1 else 'these rows'} without {'its' if count == 1 else 'their'} {IN_WORDS[kind]}, leave "
        f"{'it' if count == 1 else 'them'} out with data.leave_out, or keep the other rows as a file of their own",
        leave_out=_short(rows),
    )  # fmt: skip


def _carried(reason: str) -> str | None:
    """What a row was left out for, if `data.ignore` can have it trained without."""
    return next((kind for kind in MEANINGS if f'data.ignore = ["{kind}"]' in reason), None)


def _words(where: tuple[str, int]) -> str:
    return f"{where[0]}, row {where[1]:,}"


def _nothing(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    if not report.train_rows and len(found.tokens):
        yield Finding(
            BLOCKS, "data.nothing_trained", f"no row has a token to train on: {found.drops.summary()}", report.rows_read,
            (), None, "raise data.seq_len, or look at the rows with `qlora data --show-mask 5`",
        )  # fmt: skip


def _short(numbers: Any) -> str:
    """All of them as a person writes them; empty when they are too many to be read. They may be a million."""
    import numpy as np

    found = np.unique(np.asarray(numbers, np.int64))
    breaks = np.flatnonzero(np.diff(found) > 1)
    if not len(found) or len(breaks) >= row_numbers.MOST_RANGES:
        return ""
    firsts, lasts = found[np.concatenate([[0], breaks + 1])], found[np.concatenate([breaks, [-1]])]
    return row_numbers.text_of(tuple(zip(firsts.tolist(), lasts.tolist(), strict=True)))


def _cuts(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    longer = {"setting": "data.seq_len", "value": report.length_max}
    if report.answer_ends_cut:
        yield Finding(
            LOOK, "data.ends_cut",
            f"In {counted(report.answer_ends_cut, 'row')} the answer's end is cut, so the model does not learn to stop there.",
            report.answer_ends_cut, repair=longer, repair_text=f"raise the sequence length to {report.length_max}",
            **_rows_where(found, *(reports.ends_cut(rows) for rows in (found.train, found.held_out))),
        )  # fmt: skip
    if report.truncated_rows:
        yield Finding(
            NOTE, "data.cut",
            f"{counted(report.truncated_rows, 'row', 'are')} longer than {counted(report.seq_len, 'token')}; "
            f"{counted(report.cut_tokens, 'token', 'are')} cut.",
            report.truncated_rows, repair=longer, repair_text=f"raise the sequence length to {report.length_max}",
            **_rows_where(found, *(r.store.lengths[r.places] > found.seq_len for r in (found.train, found.held_out))),
        )  # fmt: skip


def _held_out(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    if not report.held_out_rows and report.train_rows:
        yield Finding(
            LOOK, "data.nothing_held_out",
            "Nothing is held out: the run cannot show whether the model learns or memorises.", 0, (),
            {"setting": "data.held_out_fraction", "value": 0.05}, "hold 5 % of the rows out",
        )  # fmt: skip
    for reason, places in found.sides.left_out.items():
        if len(places):
            numbers = found.tokens.column("number")[places]
            text = f"{counted(len(places), 'row')} left out: {reason}."
            yield Finding(NOTE, "data.overlap", text, len(places), _first(numbers))


def _copies(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    numbers = found.tokens.column("number")
    if report.duplicate_rows:
        count, copies = report.duplicate_rows, numbers[found.sides.copies]
        yield Finding(
            NOTE, "data.duplicates", f"{counted(count, 'row', 'repeat')} another row's content; {_same_side(count)}.",
            count, _first(copies), WRITE_CLEAN, "keep one of each in a file of its own", leave_out=_short(copies),
        )  # fmt: skip
    if report.near_duplicate_rows:
        count, copies = report.near_duplicate_rows, numbers[found.sides.near_copies]
        yield Finding(
            NOTE, "data.near_duplicates", f"{counted(count, 'row')} nearly {agreeing(count, 'repeat')} another row; {_same_side(count)}.",
            count, _first(copies), leave_out=_short(copies),
        )  # fmt: skip


def _same_side(count: int) -> str:
    return f"{pronoun(count)} {agreeing(count, 'stay')} on the same side of the split"


def _ends(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    rows = report.train_rows + report.held_out_rows
    if report.rows_without_end and rows:
        is_all = report.rows_without_end == rows
        text = (
            "No row trains a token that ends the answer, so the model may not learn to stop."
            if is_all
            else f"{counted(report.rows_without_end, 'row', 'train')} no token that ends the answer."
        )
        named = _flagged(found, working.HAS_END, is_set=False)
        yield Finding(LOOK, "data.no_end", text, report.rows_without_end, **named)
    if report.bos_per_row[1] > 1 and not _begins_turns(found):
        yield Finding(
            LOOK, "data.bos", f"Rows begin with up to {report.bos_per_row[1]} beginning tokens; one is right.",
            **_rows_where(found, *(r.store.column("bos")[r.places] > 1 for r in (found.train, found.held_out))),
        )  # fmt: skip


def _thoughts(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    """A template that opens a thought in every prompt, for data that has none: it is asked otherwise than it was trained."""
    if report.reasoning_rows or settings.reasoning == "remove" or not found.template.opens_thoughts:
        return
    yield Finding(
        LOOK, "data.opened_thought",
        "The chat template begins a thought in front of every answer it asks for, and no row has one. The model would be "
        "asked otherwise than it was trained.",
        0, (), {"setting": "data.reasoning", "value": "remove"}, "ask for answers without a thought",
    )  # fmt: skip


def _begins_turns(found: Found) -> bool:
    """Whether the template itself writes the beginning token before every turn, as ChatML does where it is that token."""
    begin = dict(found.template.source.specials).get("bos_token")
    return begin is not None and begin in found.template.jinja


def _contents(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    if report.template == "alpaca" and found.template.why != "as chosen":
        text = (
            "The model has no chat template of its own; a plain one (### Instruction, ### Response) is used."
        )
        yield Finding(NOTE, "data.template", text)
    for note, count in reports.noted(found, "note:").items():
        yield Finding(NOTE, "data.rendering", f"{counted(count, 'row')}: {note.rstrip('.')}.", count)
    if report.untrained_answer_rows:
        yield Finding(
            NOTE, "data.untrained_answers",
            f"{counted(report.untrained_answer_rows, 'row', 'mark')} answers as not to be trained.",
            report.untrained_answer_rows, **_flagged(found, working.HAS_UNTRAINED_ANSWER),
        )  # fmt: skip
    if report.short_answer_rows:
        short = found.train.numbers[found.train.trained_counts <= reports.SHORT_ANSWER_TOKENS]
        yield Finding(
            NOTE, "data.short_answers",
            f"{counted(report.short_answer_rows, 'row', 'train')} at most {reports.SHORT_ANSWER_TOKENS} tokens.",
            report.short_answer_rows, _first(short), leave_out=_short(short),
        )  # fmt: skip
    if report.unknown_tokens:
        yield Finding(
            LOOK, "data.unknown", f"The tokenizer does not know {counted(report.unknown_tokens, 'piece')} of the text.",
            **_rows_where(found, *(r.store.column("unknown")[r.places] > 0 for r in (found.train, found.held_out))),
        )  # fmt: skip


def _privacy(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    if report.secret_rows:
        count = report.secret_rows
        text = f"{counted(count, 'row', 'hold')} what looks like a key or a password; a model can repeat it."
        yield Finding(LOOK, "data.secrets", text, count, **_flagged(found, working.HAS_SECRET))
    if report.email_rows:
        text = f"{counted(report.email_rows, 'row', 'hold')} e-mail addresses."
        yield Finding(NOTE, "data.emails", text, report.email_rows, **_flagged(found, working.HAS_EMAIL))


def _keys(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    for key, count in report.unused_keys.items():
        text = f"{counted(count, 'row', 'have')} {key!r}, which is not used."
        yield Finding(NOTE, "data.unused_key", text, count)


def _flagged(found: Found, bit: int, *, is_set: bool = True) -> dict[str, Any]:
    columns = [rows.store.column("flags")[rows.places] for rows in (found.train, found.held_out)]
    masks = [(c & bit > 0) if is_set else (c & (bit | working.IS_TEXT) == 0) for c in columns]
    return _rows_where(found, *masks)


def _rows_where(found: Found, train: Any, held_out: Any) -> dict[str, Any]:
    """What a finding says of the rows of two masks: (training rows,) and (held-out rows,) bool. A held-out file counts its
    rows for itself, and they are left out there."""
    import numpy as np

    mine, held = found.train.numbers[train], found.held_out.numbers[held_out]
    if found.has_held_out_file:
        named: dict[str, Any] = {"held_rows": _first(held)}
    else:
        mine, named = np.concatenate([mine, held]), {}
    is_all = len(mine) == len(found.train) + (0 if named else len(found.held_out))
    return {**named, "rows": _first(mine), "leave_out": "" if is_all else _short(mine)}


def _first(numbers: Any) -> tuple[int, ...]:
    """The first few row numbers, each once."""
    import numpy as np

    return tuple(int(number) for number in np.unique(np.asarray(numbers))[:EXAMPLES_NAMED])
