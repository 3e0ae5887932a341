"""How many steps a run has, which rows each takes, when it evaluates; the learning-rate schedules of transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_engine.config import TrainingSettings

EVALUATIONS_PER_RUN = 8


@dataclass(frozen=True)
class Schedule:
    """The plan of a run, fixed before its first step. Steps are optimizer steps."""

    total_steps: int
    steps_per_epoch: int
    warmup_steps: int
    eval_every: int
    effective_batch: int
    train_rows: int
    seed: int
    order: Callable[[int, int, int], Sequence[int]]
    """`order(rows, seed, epoch)` -> row indices of that epoch."""
    _kept: dict[int, Sequence[int]] = field(default_factory=dict, repr=False, compare=False)
    """The order of the epoch that is now: every step asks for its part of it."""

    def rows_of(self, step: int) -> list[int]:
        """Row indices of the step after `step` finished ones; the last step of an epoch may have fewer."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch not in self._kept:
            self._kept.clear()
            self._kept[epoch] = self.order(self.train_rows, self.seed, epoch)
        start = position * self.effective_batch
        return list(self._kept[epoch][start : start + self.effective_batch])

    def epoch_at(self, step: int) -> float:
        return step / self.steps_per_epoch


def plan(
    settings: TrainingSettings, train_rows: int, order: Callable[[int, int, int], Sequence[int]]
) -> Schedule:
    """Where every step of a run is."""
    total = total_steps(settings, train_rows)
    return Schedule(
        total_steps=total,
        steps_per_epoch=steps_per_epoch(settings, train_rows),
        warmup_steps=_warmup_steps(settings, total),
        eval_every=settings.eval_every_steps or max(1, total // EVALUATIONS_PER_RUN),
        effective_batch=settings.effective_batch,
        train_rows=train_rows,
        seed=settings.seed,
        order=order,
    )


def _warmup_steps(settings: TrainingSettings, total: int) -> int:
    """`constant` has none in transformers (CORRECTNESS 32). The first step of a warm-up has rate 0, so one step at least
    is left to train in."""
    if settings.schedule == "constant":
        return 0
    return min(math.ceil(settings.warmup_ratio * total), total - 1)


def steps_per_epoch(settings: TrainingSettings, train_rows: int) -> int:
    return max(1, math.ceil(train_rows / settings.effective_batch))


def total_steps(settings: TrainingSettings, train_rows: int) -> int:
    """Optimizer steps of a run: `max_steps` where given, also when it is more than the epochs have, else from epochs."""
    return settings.max_steps or max(1, math.ceil(settings.epochs * steps_per_epoch(settings, train_rows)))


def learning_rates(settings: TrainingSettings, optimizer: Any, schedule: Schedule) -> Any:
    """A torch scheduler made by transformers. Left alone, its restarts are one, its polynomial is linear and ends at
    1e-7, which a rate below that cannot begin from."""
    from transformers import get_scheduler

    own: dict[str, dict[str, Any]] = {
        "cosine_with_restarts": {"num_cycles": settings.schedule_cycles},
        "polynomial": {"power": settings.schedule_power, "lr_end": 0.0},
    }
    return get_scheduler(
        settings.schedule,
        optimizer,
        num_warmup_steps=schedule.warmup_steps,
        num_training_steps=schedule.total_steps,
        scheduler_specific_kwargs=own.get(settings.schedule),
    )
