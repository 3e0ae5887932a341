"""Held-out rows of several runs side by side, in words. Without Qt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.presenters.words import UNKNOWN, capital, count_text, number_text, plural
from qlora_engine.evaluate.rows_across import RowAcross, RowsAcross

LONGEST = 400
"""Characters of a cell; its tooltip has all."""


@dataclass(frozen=True)
class RowsState:
    """`rows`: (short, whole) of each cell; the first column has the question and what was expected."""

    heads: tuple[str, ...] = ()
    rows: tuple[tuple[tuple[str, str], ...], ...] = ()
    summary: str = ""
    score_text: str = ""
    """Empty where there is nothing to score."""


def rows_state(found: RowsAcross, titles: Sequence[str]) -> RowsState:
    missing = len(found.unscored)
    score = f"Score held-out rows of {plural(missing, 'run')}" if missing else ""
    if found.problem:
        return RowsState(summary=f"{capital(found.problem)}.", score_text=score)
    if not found.rows:
        return RowsState(summary=_nothing(missing), score_text=score)
    pairs = zip(titles, found.losses, strict=True)
    heads = tuple(f"{title}: {number_text(loss)}" if loss is not None else title for title, loss in pairs)
    return RowsState(("Asked and expected", *heads), tuple(map(_row, found.rows)), _summary(found), score)


def _nothing(missing: int) -> str:
    if missing:
        return "The held-out rows of these runs were not scored yet. Each row's loss is measured, and some are answered by every run."
    return "Rows that were held out are compared once two of these runs are finished."


def _summary(found: RowsAcross) -> str:
    return (
        f"{plural(found.common, 'row')} that all scored runs held out; their mean loss per token stands beside each run's name. "
        f"Shown are {count_text(len(found.rows))}, those first on which the runs differ most."
    )


def _row(row: RowAcross) -> tuple[tuple[str, str], ...]:
    first = f"Row {count_text(row.row)}: {row.question}\n\nExpected: {row.expected}"
    pairs = zip(row.losses, row.answers, strict=True)
    return tuple((_short(text), text) for text in (first, *(_cell(loss, answer) for loss, answer in pairs)))


def _cell(loss: float | None, answer: str | None) -> str:
    if loss is None:
        return "Not scored"
    return f"Loss {number_text(loss)}\n\n{UNKNOWN + ': this run did not answer the row' if answer is None else answer}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\u2026"
