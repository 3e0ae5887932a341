"""Held-out predictions: figures in words, and each row expected against got. Without Qt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.presenters.words import capital, count_text, date_text, number_text, of_text, plural
from qlora_engine import events as ev

ENDS = {"worst": "Worst", "best": "Best"}


@dataclass(frozen=True)
class Split:
    """A text as the part that both answers share and the part that differs."""

    same: str
    differing: str


@dataclass(frozen=True)
class PredictionRow:
    """One row, ready to show."""

    heading: str
    detail: str
    question: str
    expected: Split
    got: Split


@dataclass(frozen=True)
class PredictionsState:
    summary: str
    rows: tuple[PredictionRow, ...]


class PredictionsFold:
    """`state`: idle, running, failed. `found` is the document of the shown run; None when there is none."""

    def __init__(self) -> None:
        self.state = "idle"
        self.run = ""
        """Whose rows are scored: another run may be shown meanwhile."""
        self.phase_text = ""
        self.share: float | None = None
        self.error_text = ""
        self.error_hint = ""
        self.found: Mapping[str, Any] | None = None
        self.version = 0

    def show(self, found: Mapping[str, Any] | None) -> None:
        self.found, self.error_text = found, ""
        self.version += 1

    def begin(self, run: str) -> None:
        self.run = run
        self.state, self.phase_text, self.share, self.error_text = "running", "Starting the engine", None, ""
        self.version += 1

    @property
    def working_text(self) -> str:
        """What goes on, and for which run; empty while nothing does."""
        return f"Scoring {self.run}: {self.phase_text}" if self.state == "running" else ""

    def fold(self, event: ev.Event) -> None:
        self.version += 1
        match event:
            case ev.PhaseChanged(_, text):
                self.phase_text, self.share = text, None
            case ev.Progressed(_, done, total, _):
                self.share = done / total if total else None
            case ev.RunFinished(result):
                self.state, self.found = "idle", result
            case ev.RunFailed(_, message, hint):
                self.state, self.error_text, self.error_hint = "failed", capital(message), capital(hint)
            case ev.RunStopped():
                self.state = "idle"
            case _:
                pass

    def shown(self, end: str) -> PredictionsState:
        """`end`: one of `ENDS`."""
        found = self.found
        if found is None:
            return PredictionsState("", ())
        return PredictionsState(summary_text(found), tuple(_row(row) for row in found.get(end) or ()))


def summary_text(found: Mapping[str, Any]) -> str:
    rows = int(found.get("scored_rows") or 0)
    return (
        f"{plural(rows, 'held-out row')}: mean loss {number_text(found.get('loss'))} per token; "
        f"{count_text(int(found.get('faultless_rows') or 0))} predicted without a wrong token. Scored {date_text(found.get('unix_time'))}."
    )


def _row(row: Mapping[str, Any]) -> PredictionRow:
    expected, got = str(row.get("expected") or ""), str(row.get("got") or "")
    same = common_length(expected, got)
    return PredictionRow(
        heading=f"Row {count_text(row.get('row'))} \u00b7 loss {number_text(row.get('loss'))} per token",
        detail=_wrong_text(row),
        question=str(row.get("question") or ""),
        expected=Split(expected[:same], expected[same:]),
        got=Split(got[:same], got[same:] + ("" if row.get("is_complete", True) else " \u2026")),
    )


def _wrong_text(row: Mapping[str, Any]) -> str:
    wrong = row.get("wrong_at")
    if wrong is None:
        return "no wrong token"
    return (
        f"first wrong token {of_text(wrong + 1, row.get('answer_tokens'))}: "
        f"{_quoted(row.get('wrong_token'))} expected, {_quoted(row.get('likeliest_token'))} likelier"
    )


def _quoted(token: object) -> str:
    text = str(token or "").replace("\n", "\\n")
    return f"\u201c{text}\u201d"


def common_length(one: str, other: str) -> int:
    """How far two texts agree."""
    limit = min(len(one), len(other))
    return next((i for i in range(limit) if one[i] != other[i]), limit)


def titles() -> Sequence[tuple[str, str]]:
    return tuple(ENDS.items())
