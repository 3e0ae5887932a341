"""A running job on the terminal: a live bar where there is one, plain lines where there is not. All on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from qlora_engine.cli import output
from qlora_engine.cli.story import Story, amount, bar, numbers
from qlora_engine.events import Event, PhaseChanged, Progressed, StepFinished

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
    """One line per happening; a bar at most every `PLAIN_SECONDS`."""

    def __init__(self) -> None:
        self._story = Story()
        self._spoken = 0.0

    def show(self, event: Event) -> None:
        for words in self._story.of(event):
            self._say(words)
        match event:
            case StepFinished() if event.step in (1, event.total_steps) or self._is_due():
                self._say(f"  {bar(event.step, event.total_steps)}{numbers(event)}")
            case Progressed() if self._is_due():
                self._say(f"  {bar(event.done, event.total)}{numbers(event)}")

    def _is_due(self) -> bool:
        return time.monotonic() - self._spoken >= PLAIN_SECONDS

    def _say(self, words: str) -> None:
        self._spoken = time.monotonic()
        output.note(words)


class Bars:
    """A bar for the phase at hand, and lines above it for what happened."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._story = Story()
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
        for words in self._story.of(event):
            self._progress.console.print(output.quoted(words), markup=False, highlight=False, soft_wrap=True)
        match event:
            case Progressed():
                self._move(event.phase.capitalize(), event.done, event.total, amount(event))
            case StepFinished():
                self._move("Training", event.step, event.total_steps, numbers(event) or "")
            case PhaseChanged():
                self._move(event.phase.capitalize(), 0, None, "")

    def _move(self, phase: str, done: int, total: int | None, detail: str) -> None:
        if phase != self._phase:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(phase, total=total, detail="")
            self._phase = phase
        self._progress.update(self._task, completed=done, total=total, detail=output.quoted(detail))
