"""What tries a result: chat, replay and held-out rows share one engine, so that one model at most is in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import QObject, Signal

from app.services.engine_thread import JobRunner
from qlora_engine.events import Event
from qlora_engine.jobs import Job


class Tryout(QObject):
    """One job at a time, of one of several owners; a new one ends the old, and begins once that is gone.

    Signals: `event_arrived(owner, Event)`; `changed` when a job began, waits or is gone.
    """

    event_arrived = Signal(str, object)
    changed = Signal()

    def __init__(self, runner: JobRunner) -> None:
        super().__init__()
        self._runner = runner
        self._waiting: tuple[str, Job] | None = None
        self._running = ""
        runner.event_arrived.connect(self._take)
        runner.ended.connect(self._next)

    @property
    def owner(self) -> str:
        """Whose job runs or waits; empty when there is none."""
        return self._waiting[0] if self._waiting is not None else self._running

    def start(self, owner: str, job: Job) -> None:
        """Begin; what another owner had loaded is given back first."""
        if self._runner.is_running:
            self._waiting = (owner, job)
            self._runner.stop()
        else:
            self._begin(owner, job)
        self.changed.emit()

    def stop(self, owner: str) -> None:
        """End the owner's job, also one that waits."""
        if self._waiting is not None and self._waiting[0] == owner:
            self._waiting = None
        elif self._running == owner:
            self._runner.stop()
        self.changed.emit()

    def make_room(self) -> None:
        """End whatever runs: a training gets the memory and the processor to itself."""
        self._waiting = None
        self._runner.stop()

    def send(self, owner: str, command: Mapping[str, Any]) -> None:
        if self._running == owner:
            self._runner.send(command)

    def _begin(self, owner: str, job: Job) -> None:
        self._running = owner
        self._runner.start(job)

    def _take(self, event: Event) -> None:
        self.event_arrived.emit(self._running, event)

    def _next(self) -> None:
        waiting, self._waiting, self._running = self._waiting, None, ""
        if waiting is not None:
            self._begin(*waiting)
        self.changed.emit()
