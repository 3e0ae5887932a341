"""How long a run with a job takes, told from runs of the same model that have steps: finished, broken off or under way. Torch-free."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.errors import EngineError
from qlora_engine.runs import curves
from qlora_engine.runs.index import RunEntry
from qlora_engine.runs.record import RunFolder
from qlora_engine.training.schedule import total_steps

LOOKED_AT = 20
"""The runs of a model that are asked; finished ones first, then the newest."""
KEPT = 500
"""Runs whose pace is remembered: a list of many that wait asks for the same ones again and again."""
LENGTHS = ("data.seq_len", "data.packing")
"""Settings of the data that change how long rows are computed, not which rows there are."""


@dataclass(frozen=True)
class Pace:
    """What a run of the past tells. `seconds`, `tokens` and `rows_seen` are of its steps so far; `train_rows` of its data."""

    config: TrainingConfig
    seconds: float
    tokens: float
    rows_seen: int
    train_rows: int | None

    def seconds_a_row(self, config: TrainingConfig) -> float | None:
        """For a job of the same model: by the row where rows are as long, by the token where the same rows are longer or
        shorter; None where neither is so."""
        if self.config.data.seq_len == config.data.seq_len:
            return self.seconds / self.rows_seen
        is_known = self.tokens and has_same_rows(self.config, config)
        return self.seconds_a_token * self.tokens / self.rows_seen if is_known else None

    @property
    def seconds_a_token(self) -> float:
        return self.seconds / self.tokens if self.tokens else math.nan


class Paces:
    """Answers for many jobs from one list of runs, which are read when they are first asked for."""

    def __init__(self, entries: Iterable[RunEntry]) -> None:
        self._entries = [entry for entry in entries if entry.summary.last_step]
        self._of_model: dict[str, list[Pace]] = {}

    def seconds_of(
        self, config: TrainingConfig, rows: int | None = None, tokens: int | None = None
    ) -> float | None:
        """How long a whole run takes. `rows` and `tokens` to train on are those of its data, where they were looked at.

        None where no run of the model has a step, or where the number of rows is not known.
        """
        known = [pace for pace in self._paces(config.model.name) if pace.config.model == config.model]
        counted = rows or next((p.train_rows for p in known if p.train_rows and has_same_rows(p.config, config)), None)  # fmt: skip
        steps = total_steps(config.training, counted) if counted else config.training.max_steps
        pace = next((found for p in known if (found := p.seconds_a_row(config)) is not None), None)
        if pace is None and rows and tokens:
            pace = next((p.seconds_a_token * tokens / rows for p in known if p.tokens), None)
        return None if pace is None or not steps else steps * config.training.effective_batch * pace

    def _paces(self, model: str) -> list[Pace]:
        if model not in self._of_model:
            alike = [entry for entry in self._entries if entry.summary.model == model]
            alike.sort(key=lambda entry: entry.state != "finished")
            found = (pace_of(entry) for entry in alike[:LOOKED_AT])
            self._of_model[model] = [pace for pace in found if pace is not None]
        return self._of_model[model]


def has_same_rows(one: TrainingConfig, other: TrainingConfig) -> bool:
    """True where both train on the same rows, however long they may be."""
    for path in LENGTHS:
        one, other = with_value(one, path, None), with_value(other, path, None)
    return one.data == other.data


def pace_of(entry: RunEntry) -> Pace | None:
    """What a run tells of its steps so far; None where it has none or cannot be read."""
    return _pace(entry)


@functools.lru_cache(KEPT)
def _pace(entry: RunEntry) -> Pace | None:
    """An entry is another as soon as its run has gone on."""
    try:
        folder = RunFolder(entry.path)
        job, plan = folder.job(), folder.record().get("plan") or {}
    except EngineError:
        return None
    columns = curves.read(entry.path).columns
    steps = len(columns["step"]) or entry.summary.last_step or 0
    spent = math.fsum(value for value in columns["step_seconds"] if math.isfinite(value))
    seconds = entry.summary.train_seconds if entry.state == "finished" else None
    if not steps or not (seconds or spent):
        return None
    rows = steps * job.training.effective_batch
    return Pace(job, seconds or spent, math.fsum(columns["tokens"]), rows, plan.get("train_rows"))
