"""Rehearses the step whose memory is being looked at, in the background, when nobody waits for anything else."""

from __future__ import annotations

import time
from collections.abc import Sequence

from PySide6.QtCore import QObject, QTimer, Signal

from app.services.engine_thread import JobRunner
from app.services.memory_answers import MemoryQuestion
from app.services.workspace import Workspace
from qlora_engine.events import TERMINAL, Event, Progressed, RunFailed, RunFinished

DELAY_MS = 2000
"""How long the settings must stay as they are before a rehearsal begins."""


class Rehearser(QObject):
    """At most one rehearsal, of the newest question; a changed setting ends it. Lives in the GUI thread.

    Signals: `changed` when `state` or `share` is new. `state`: "" (nothing asked), waiting, held (another job runs),
    running, done, failed. `at` is the monotonic time of the answer shown, `problem` says why there is none.
    """

    changed = Signal()

    def __init__(self, workspace: Workspace, runner: JobRunner, others: Sequence[JobRunner]) -> None:
        super().__init__()
        self._workspace, self._runner, self._others = workspace, runner, tuple(others)
        self._question: MemoryQuestion | None = None
        self._running: MemoryQuestion | None = None
        self._answered: dict[str, float] = {}
        self._problems: dict[str, str] = {}
        self._is_wanted = False
        self.share: float | None = None
        self._timer = QTimer(self, singleShot=True, interval=DELAY_MS)
        self._timer.timeout.connect(self._begin)
        workspace.job.changed.connect(self._look)
        workspace.memory.changed.connect(self._look)
        runner.event_arrived.connect(self._take)
        runner.ended.connect(self._again)
        for other in self._others:
            other.started.connect(self._make_room)
            other.ended.connect(self._again)

    @property
    def state(self) -> str:
        key = self._key
        if not key:
            return ""
        if key in self._answered:
            return "done"
        if key in self._problems:
            return "failed"
        if self._running is not None and self._running.key == key:
            return "running"
        return "held" if self._is_held else "waiting" if self._is_wanted else ""

    @property
    def at(self) -> float | None:
        return self._answered.get(self._key)

    @property
    def problem(self) -> str:
        return self._problems.get(self._key, "")

    @property
    def _key(self) -> str:
        return self._question.key if self._question is not None else ""

    @property
    def _is_held(self) -> bool:
        return any(other.is_running for other in self._others)

    def want(self, is_wanted: bool) -> None:
        """True while somebody looks at the memory; what has begun goes on."""
        self._is_wanted = is_wanted
        self._look()
        self._again()

    def close(self) -> None:
        """End for good; a rehearsal has nothing to save."""
        self._timer.stop()
        self._end()

    def _look(self) -> None:
        """Follow the settings: another question ends the rehearsal of the old one."""
        question = self._workspace.memory.question
        before, self._question = self._key, question
        if self._key == before:
            return
        if self._running is not None:
            self._end()
        self._again()
        self.changed.emit()

    def _again(self) -> None:
        """Count down to a rehearsal, where one is missing."""
        if self._is_wanted and self.state == "waiting":
            self._timer.start()
        else:
            self._timer.stop()

    def _begin(self) -> None:
        if self.state != "waiting" or self._runner.is_running or self._question is None:
            return
        self._running, self.share = self._question, None
        self._runner.start(self._question.job)
        self.changed.emit()

    def _make_room(self) -> None:
        self._end()
        self._timer.stop()
        self.changed.emit()

    def _end(self) -> None:
        """Stop without waiting: nothing is lost with the child process, and its imports take long to hear a word."""
        self._running = None
        engine = self._runner.engine
        self._runner.stop()
        kill = getattr(engine, "kill", None)
        if kill is not None:
            kill()

    def _take(self, event: Event) -> None:
        question = self._running
        if question is None:
            return
        if isinstance(event, Progressed):
            self.share = event.done / event.total if event.total else None
        elif isinstance(event, TERMINAL):
            self._running = None
            if isinstance(event, RunFinished):
                self._answered[question.key] = time.monotonic()
                self._workspace.memory.take_rehearsal(question, event.result)
            else:
                self._problems[question.key] = event.message if isinstance(event, RunFailed) else "stopped"
        self.changed.emit()
