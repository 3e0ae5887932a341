"""What the start of a run took, by its parts: said once, before the first step, and kept in `run.json`. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from qlora_engine.events import (
    AdaptersAttached,
    DatasetPrepared,
    Event,
    ModelLoaded,
    Noticed,
    PhaseChanged,
    PlanMade,
)

T = TypeVar("T")
IMPORTS, DRY_STEP = "importing the libraries", "the longest rows, tried"
BEGUN_PHASES = {
    "tokenizing": "finding the model and its tokenizer",
    "loading": "planning",
}
"""Phase -> the part that has ended when it begins."""
ENDED: dict[type[Event], str] = {
    DatasetPrepared: "reading the data",
    ModelLoaded: "loading the model",
    AdaptersAttached: "attaching adapters",
    PlanMade: "trying the faster ways",
}
"""Event -> the part that it ends."""


class StartTimes:
    """Seconds by the clock, each part from the end of the one before. `began`: when the job began (time.perf_counter)."""

    def __init__(self, began: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._last, self._clock = began, clock
        self.seconds: dict[str, float] = {}

    def ended(self, part: str) -> None:
        """`part` ends now; one that comes twice is added up."""
        now = self._clock()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def over(self, events: Generator[Event, None, T]) -> Generator[Event, None, T]:
        """The same events and result, with the parts that they end noted."""
        try:
            while True:
                event = next(events)
                part = (
                    BEGUN_PHASES.get(event.phase)
                    if isinstance(event, PhaseChanged)
                    else ENDED.get(type(event))
                )
                if part is not None:
                    self.ended(part)
                yield event
        except StopIteration as end:
            return end.value
        finally:
            events.close()

    def told(self) -> Noticed:
        """All of it in one sentence, the longest part first."""
        parts = sorted(self.seconds.items(), key=lambda one: -one[1])
        words = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts)
        return Noticed(
            "info", "run.start", f"Ready to train after {sum(self.seconds.values()):.1f} s: {words}"
        )

    def to_json(self) -> dict[str, Any]:
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}
