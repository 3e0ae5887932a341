"""Held-out rows of several runs beside each other: each row's loss and answer under every run, from what was kept. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_engine import parsing
from qlora_engine.errors import EngineError
from qlora_engine.evaluate import prediction_file
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.summary import summary_of

MOST_ROWS = 20
TOLD = ("same", "worst", "best")
"""Where a document tells rows with their texts."""


@dataclass(frozen=True)
class RowAcross:
    """One row. `losses` (nats per trained token) and `answers` in the order of the runs; None where a run has none."""

    row: int
    question: str
    expected: str
    losses: tuple[float | None, ...]
    answers: tuple[str | None, ...]

    @property
    def spread(self) -> float:
        known = [loss for loss in self.losses if loss is not None]
        return max(known) - min(known) if known else 0.0


@dataclass(frozen=True)
class RowsAcross:
    """`losses`: of each run over the `common` rows that all scored runs held out, summed over their trained tokens; None for
    a run that was not scored. `unscored`: places of the runs that can be. `problem`: why nothing can be compared."""

    rows: tuple[RowAcross, ...]
    common: int
    losses: tuple[float | None, ...]
    unscored: tuple[int, ...]
    problem: str = ""


@dataclass(frozen=True)
class _Scored:
    """`scores`: row -> (loss, trained tokens); `told`: row -> question, expected, got."""

    scores: Mapping[int, tuple[float, int]]
    told: Mapping[int, Mapping[str, Any]]
    data: tuple[Any, ...]


def across(folders: Sequence[RunFolder], most: int = MOST_ROWS) -> RowsAcross:
    """Rows that every scored run held out, those first that most runs answered and on which they differ most."""
    found = [_read(folder) for folder in folders]
    unscored = tuple(n for n, one in enumerate(found) if one is None and summary_of(folders[n]).has_adapter)
    scored = [one for one in found if one is not None]
    problem = _problem(scored)
    common = set.intersection(*(set(one.scores) for one in scored)) if scored and not problem else set()
    rows = [_row(number, found) for number in sorted(common) if any(number in one.told for one in scored)]
    rows.sort(key=lambda row: (sum(answer is None for answer in row.answers), -row.spread))
    losses = tuple(_mean(one, common) if one is not None else None for one in found)
    if len(scored) > 1 and not problem and not common:
        problem = "these runs held out different rows, and none is common to all: give them the same seed and held-out share"
    return RowsAcross(tuple(rows[:most]), len(common), losses, unscored, problem)


def _problem(scored: Sequence[_Scored]) -> str:
    if len({one.data for one in scored}) > 1:
        return "these runs held out rows of different data, which cannot be compared row by row"
    return ""


def _row(number: int, found: Sequence[_Scored | None]) -> RowAcross:
    texts = next(one.told[number] for one in found if one is not None and number in one.told)
    return RowAcross(
        number,
        str(texts.get("question") or ""),
        str(texts.get("expected") or ""),
        tuple(None if one is None else one.scores[number][0] for one in found),
        tuple(
            str(one.told[number]["got"]) if one is not None and number in one.told else None for one in found
        ),
    )


def _mean(one: _Scored, rows: set[int]) -> float | None:
    tokens = sum(one.scores[row][1] for row in rows)
    return sum(one.scores[row][0] * one.scores[row][1] for row in rows) / tokens if tokens else None


def _read(folder: RunFolder) -> _Scored | None:
    """None where the rows of its present adapter were not scored."""
    document = prediction_file.read(folder)
    if document is None:
        return None
    told = {int(row["row"]): row for name in TOLD for row in document.get(name) or ()}
    scores = {number: (float(row["loss"]), int(row["tokens"])) for number, row in told.items()}
    scores |= {int(row["row"]): (float(row["loss"]), int(row["tokens"])) for row in _lines(folder)}
    return _Scored(scores, told, _data_of(folder, document))


def _lines(folder: RunFolder) -> list[Mapping[str, Any]]:
    """Every row's score; empty where the file is gone or damaged."""
    try:
        text = (folder.path / prediction_file.ROWS_FILE).read_text(encoding="utf-8")
        return [parsing.from_json(line) for line in text.splitlines()]
    except (OSError, ValueError):
        return []


def _data_of(folder: RunFolder, document: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the numbers of rows count in."""
    try:
        held_out_path = folder.job().data.held_out_path
    except EngineError:
        held_out_path = None
    return document.get("data_sha256"), held_out_path
