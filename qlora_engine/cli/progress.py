"""A running job on the terminal: a live bar where there is one, plain lines where there is not. All on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from qlora_engine.cli import output
from qlora_engine.events import (
    CheckFinished,
    CheckpointSaved,
    Continued,
    EvaluationFinished,
    Event,
    ModelLoaded,
    Noticed,
    OptimizerBuilt,
    Paused,
    PhaseChanged,
    PlanMade,
    Progressed,
    RunStarted,
    StepFinished,
)

PLAIN_SECONDS = 10.0


class View(Protocol):
    """Shows events as they come."""

    def show(self, event: Event) -> None: ...


@contextmanager
def view(*, is_quiet: bool = False) -> Iterator[View]:
    """A bar on a terminal, lines in a log, nothing when quiet."""
    if is_quiet:
        yield Silence()
    elif sys.stderr.isatty():
        with Bars() as bars:
            yield bars
    else:
        yield Lines()


class Silence:
    def show(self, event: Event) -> None:
        """Nothing: whoever asked reads the result only."""


class Lines:
    """One line per happening; steps at most every `PLAIN_SECONDS`."""

    def __init__(self) -> None:
        self._spoken = 0.0

    def show(self, event: Event) -> None:
        words = sentence(event)
        if words:
            output.note(words)
            return
        words = numbers(event)
        is_last = isinstance(event, StepFinished) and event.step == event.total_steps
        if words and (is_last or time.monotonic() - self._spoken >= PLAIN_SECONDS):
            self._spoken = time.monotonic()
            output.note(words)


class Bars:
    """A bar for the phase at hand, and lines above it for what happened."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: Any = None
        self._phase = ""

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        words = sentence(event)
        if words:
            self._progress.console.print(words, markup=False, highlight=False)
        match event:
            case Progressed():
                self._move(event.phase.capitalize(), event.done, event.total, _amount(event))
            case StepFinished():
                self._move("Training", event.step, event.total_steps, numbers(event) or "")

    def _move(self, phase: str, done: int, total: int | None, detail: str) -> None:
        if phase != self._phase:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(phase, total=total, detail="")
            self._phase = phase
        self._progress.update(self._task, completed=done, total=total, detail=detail)


def sentence(event: Event) -> str | None:
    """A happening in words; None for what is only a number moving."""
    match event:
        case RunStarted():
            return f"{'Resuming' if event.is_resumed else 'Run'} {event.run_id} in {event.run_dir}"
        case PhaseChanged():
            return event.text
        case ModelLoaded():
            return _loaded(event)
        case OptimizerBuilt():
            return _optimizer(event)
        case PlanMade():
            return _plan(event)
        case EvaluationFinished():
            best = ", the best so far" if event.is_best else ""
            return f"Held-out loss {event.loss:.4f} at step {event.step}{best}"
        case CheckpointSaved():
            return f"Checkpoint at step {event.step} saved ({output.size(event.total_bytes)})"
        case CheckFinished():
            return f"{_mark(event.passed)} {event.name}: {event.detail}"
        case Noticed():
            return f"{event.message}{'; ' + event.hint if event.hint else ''}"
        case Paused():
            return f"Paused at step {event.step}"
        case Continued():
            return f"Going on from step {event.step}"
    return None


def numbers(event: Event) -> str | None:
    """The figures of a step or of progress inside a phase."""
    match event:
        case StepFinished():
            return (
                f"step {event.step}/{event.total_steps}  loss {event.loss:.4f}  "
                f"{event.tokens_per_second:.0f} tokens/s  {output.duration(event.eta_seconds)} left"
            )
        case Progressed():
            return f"{event.phase}: {_amount(event)}"
    return None


def _amount(event: Progressed) -> str:
    if event.unit == "bytes":
        total = f" of {output.size(event.total)}" if event.total is not None else ""
        return f"{output.size(event.done)}{total}"
    total = f" of {event.total}" if event.total is not None else ""
    return f"{event.done}{total} {event.unit}"


def _loaded(event: ModelLoaded) -> str:
    report = event.report
    packed, constants = report.get("packed_bytes"), report.get("constants_bytes")
    nested = " with double quantization" if report.get("is_double_quant") else ""
    return (
        f"Loaded {str(report.get('quant_type', '4-bit')).upper()}{nested}: {output.size(packed)} weights, "
        f"{output.size(constants)} constants, {output.size(report.get('unquantized_bytes'))} unquantized, "
        f"on {report.get('device', output.NOT_AVAILABLE)} in {report.get('compute_dtype', output.NOT_AVAILABLE)}"
    )


def _optimizer(event: OptimizerBuilt) -> str:
    paged = f", {output.size(event.paged_bytes)} of it paged" if event.paged_bytes else ""
    reason = f" ({event.why_not_paged})" if event.why_not_paged else ""
    return f"Optimizer {event.class_name}: {output.size(event.state_bytes)} of state{paged}{reason}"


def _plan(event: PlanMade) -> str:
    peak = event.predicted_peak_bytes
    expected = f", about {output.size(peak)} of memory at the peak" if peak is not None else ""
    return (
        f"{event.total_steps} steps of {event.micro_batch} x {event.accumulation} rows, {event.train_rows} rows, "
        f"{event.held_out_rows} held out, up to {event.seq_len} tokens{expected}"
    )


def _mark(passed: bool | None) -> str:
    return {True: "passed", False: "FAILED", None: "not run"}[passed]
