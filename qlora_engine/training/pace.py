"""How fast the run goes, how long it will take, and when a checkpoint is due."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import fmean

from qlora_engine.config import CheckpointSettings

STEPS_BEFORE_ETA = 3
STEPS_REMEMBERED = 50


class Pace:
    """Counts steps of this process (not of the whole run)."""

    def __init__(self, settings: CheckpointSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self._last_checkpoint = clock()
        self.steps = 0

    def note(self, step_seconds: float) -> None:
        self.steps += 1
        self._recent.append(step_seconds)

    def eta_seconds(self, remaining_steps: int) -> float | None:
        """None until it means something."""
        if self.steps < STEPS_BEFORE_ETA:
            return None
        return fmean(self._recent) * remaining_steps

    def checkpoint_due(self, step: int) -> str | None:
        """`steps` or `time` when a checkpoint is due after `step`, else None."""
        if self._settings.every_steps and step % self._settings.every_steps == 0:
            return "steps"
        if self._clock() - self._last_checkpoint >= self._settings.every_minutes * 60:
            return "time"
        return None

    def checkpointed(self) -> None:
        self._last_checkpoint = self._clock()
