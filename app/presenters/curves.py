"""The curves of one run: its points by step, and the smoothed loss. Without Qt."""

from __future__ import annotations

from array import array
from bisect import bisect_right

from qlora_engine.events import EvaluationFinished, StepFinished

SMOOTHING = 0.85
NAMES = ("loss", "smooth", "held_out", "rate", "grad", "speed")


class Series:
    """Points of one curve, in the order of their steps."""

    def __init__(self) -> None:
        self.x, self.y = array("d"), array("d")

    def add(self, x: float, y: float | None) -> None:
        self.x.append(x)
        self.y.append(float("nan") if y is None else y)

    def forget_after(self, x: float) -> None:
        kept = bisect_right(self.x, x)
        del self.x[kept:], self.y[kept:]

    def __len__(self) -> int:
        return len(self.x)


class Curves(dict[str, Series]):
    """One series for each of `NAMES`."""

    def __init__(self) -> None:
        super().__init__((name, Series()) for name in NAMES)

    def add_step(self, event: StepFinished) -> None:
        smooth = self._smoothed(event.loss)
        for name, value in (
            ("loss", event.loss), ("smooth", smooth), ("rate", event.learning_rate),
            ("grad", event.grad_norm), ("speed", event.tokens_per_second),
        ):  # fmt: skip
            self[name].add(event.step, value)

    def add_evaluation(self, event: EvaluationFinished) -> None:
        self["held_out"].add(event.step, event.loss)

    def forget_after(self, step: int) -> None:
        """What a crash threw away is trained again."""
        for series in self.values():
            series.forget_after(step)

    def _smoothed(self, loss: float) -> float:
        """The exponential mean with `loss` as its newest value, free of the bias of its first values."""
        before = self["smooth"].y
        if not before:
            return loss
        weight = 1 - SMOOTHING ** len(before)
        return (SMOOTHING * weight * before[-1] + (1 - SMOOTHING) * loss) / (1 - SMOOTHING * (1 - weight))
