"""What is wrong with a dataset, graded: it blocks the start, is to be looked at, or is good to know. Torch-free.

`qlora data`, `qlora check`, the window and the start of a run all ask here, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from qlora_engine.config import DataSettings
from qlora_engine.data import report as reports
from qlora_engine.data import working
from qlora_engine.data.formats import Detection
from qlora_engine.data.formats.kind import MEANINGS
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
    yield from left_out(
        reports.Drops(found.tokens.problems), found.tokens.numbers, report.format, settings.bad_rows,
        found.store.place,
    )  # fmt: skip


def left_out(
    unread: reports.Drops, total: int, format_name: str, most: float, place: Place
) -> Iterator[Finding]:
    """Rows that cannot be used: each reason, or that they are too many."""
    if not unread.count:
        return
    yield from _changed_meaning(unread, total)
    share = unread.count / max(1, total)
    rows = tuple(unread.numbers[:EXAMPLES_NAMED])
    if share > most or unread.count == total:
        yield Finding(
            BLOCKS, "data.columns",
            f"{unread.count:,} of {total:,} rows cannot be read as {format_name}, the first in {_words(place(rows[0]))}: "
            f"{unread.summary()}",
            unread.count, rows, None, "check data.format and data.columns, or allow more with data.bad_rows",
        )  # fmt: skip
        return
    grade = LOOK if share > MANY_BAD else NOTE
    for reason in unread.reasons():
        if _carried(reason["reason"]):
            continue  # told above, with what a person can say of it
        text = f"{_rows(reason['count'])} left out: {reason['reason']}."
        yield Finding(
            grade, "data.left_out", text, reason["count"], tuple(reason["first_rows"]), WRITE_CLEAN,
            "keep the other rows as a file of their own",
        )  # fmt: skip


def _changed_meaning(unread: reports.Drops, total: int) -> Iterator[Finding]:
    """Rows left out because of what they carry besides text: whether to train them without it only a person can say."""
    for kind in MEANINGS:
        mine = [r for r in unread.reasons() if _carried(r["reason"]) == kind]
        count = sum(reason["count"] for reason in mine)
        if not count:
            continue
        rows = tuple(sorted(n for reason in mine for n in reason["first_rows"]))[:EXAMPLES_NAMED]
        yield Finding(
            BLOCKS if count > MANY_BAD * total else LOOK, "data.meaning",
            f"{_rows(count)} carry {kind}, which change what a row means and are not used: {mine[0]['reason']}.",
            count, rows, {"setting": "data.ignore", "value": [kind], "adds": True},
            f"train these rows without their {kind}, or keep the other rows as a file of their own",
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


def _cuts(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    longer = {"setting": "data.seq_len", "value": report.length_max}
    if report.answer_ends_cut:
        yield Finding(
            LOOK, "data.ends_cut",
            f"In {_rows(report.answer_ends_cut)} the answer's end is cut, so the model does not learn to stop there.",
            report.answer_ends_cut, _longest(found), longer, f"raise the sequence length to {report.length_max}",
        )  # fmt: skip
    if report.truncated_rows:
        yield Finding(
            NOTE, "data.cut",
            f"{_rows(report.truncated_rows)} are longer than {report.seq_len} tokens; {report.cut_tokens:,} tokens are cut.",
            report.truncated_rows, _longest(found), longer, f"raise the sequence length to {report.length_max}",
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
            yield Finding(
                NOTE,
                "data.overlap",
                f"{_rows(len(places))} left out: {reason}.",
                len(places),
                _first(numbers),
            )


def _copies(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    numbers = found.tokens.column("number")
    if report.duplicate_rows:
        yield Finding(
            NOTE, "data.duplicates",
            f"{_rows(report.duplicate_rows)} repeat another row's content; they stay on the same side of the split.",
            report.duplicate_rows, _first(numbers[found.sides.copies]), WRITE_CLEAN, "keep one of each in a file of its own",
        )  # fmt: skip
    if report.near_duplicate_rows:
        yield Finding(
            NOTE, "data.near_duplicates",
            f"{_rows(report.near_duplicate_rows)} nearly repeat another row; they stay on the same side of the split.",
            report.near_duplicate_rows, _first(numbers[found.sides.near_copies]),
        )  # fmt: skip


def _ends(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    rows = report.train_rows + report.held_out_rows
    if report.rows_without_end and rows:
        is_all = report.rows_without_end == rows
        text = (
            "No row trains a token that ends the answer, so the model may not learn to stop."
            if is_all
            else f"{_rows(report.rows_without_end)} train no token that ends the answer."
        )
        yield Finding(
            LOOK, "data.no_end", text, report.rows_without_end, _flagged(found, working.HAS_END, is_set=False)
        )
    if report.bos_per_row[1] > 1 and not _begins_turns(found):
        yield Finding(
            LOOK, "data.bos", f"Rows begin with up to {report.bos_per_row[1]} beginning tokens; one is right.",
            0, _where(found, reports.column_of(found, "bos") > 1),
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
    for name, count in found.tokens.counts.items():
        if name.startswith("note:"):
            yield Finding(
                NOTE, "data.rendering", f"{_rows(count)}: {name.removeprefix('note:').rstrip('.')}.", count
            )
    if report.untrained_answer_rows:
        yield Finding(
            NOTE, "data.untrained_answers", f"{_rows(report.untrained_answer_rows)} mark answers as not to be trained.",
            report.untrained_answer_rows, _flagged(found, working.HAS_UNTRAINED_ANSWER),
        )  # fmt: skip
    if report.short_answer_rows:
        trained = found.train.trained_counts <= reports.SHORT_ANSWER_TOKENS
        yield Finding(
            NOTE, "data.short_answers",
            f"{_rows(report.short_answer_rows)} train at most {reports.SHORT_ANSWER_TOKENS} tokens.",
            report.short_answer_rows, _first(found.train.numbers[trained]),
        )  # fmt: skip
    if report.unknown_tokens:
        yield Finding(
            LOOK, "data.unknown", f"The tokenizer does not know {report.unknown_tokens:,} pieces of the text.", 0,
            _where(found, reports.column_of(found, "unknown") > 0),
        )  # fmt: skip


def _privacy(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    if report.secret_rows:
        text = f"{_rows(report.secret_rows)} hold what looks like a key or a password; a model can repeat it."
        yield Finding(LOOK, "data.secrets", text, report.secret_rows, _flagged(found, working.HAS_SECRET))
    if report.email_rows:
        text = f"{_rows(report.email_rows)} hold e-mail addresses."
        yield Finding(NOTE, "data.emails", text, report.email_rows, _flagged(found, working.HAS_EMAIL))


def _keys(found: Found, report: DataReport, settings: DataSettings) -> Iterator[Finding]:
    for key, count in report.unused_keys.items():
        yield Finding(NOTE, "data.unused_key", f"{_rows(count)} have {key!r}, which is not used.", count)


def _flagged(found: Found, bit: int, *, is_set: bool = True) -> tuple[int, ...]:
    flags = reports.column_of(found, "flags")
    return _where(found, (flags & bit > 0) if is_set else (flags & (bit | working.IS_TEXT) == 0))


def _where(found: Found, mask: Any) -> tuple[int, ...]:
    return _first(reports.column_of(found, "number")[mask])


def _longest(found: Found) -> tuple[int, ...]:
    lengths = found.train.store.lengths[found.train.places]
    order = (-lengths).argsort(kind="stable")[:EXAMPLES_NAMED]
    return tuple(
        int(n)
        for n, size in zip(found.train.numbers[order], lengths[order], strict=True)
        if size > found.seq_len
    )


def _first(numbers: Any) -> tuple[int, ...]:
    """The first few row numbers, each once."""
    import numpy as np

    return tuple(int(number) for number in np.unique(np.asarray(numbers))[:EXAMPLES_NAMED])


def _rows(count: int | Sequence[int]) -> str:
    number = count if isinstance(count, int) else len(count)
    return "1 row" if number == 1 else f"{number:,} rows"
