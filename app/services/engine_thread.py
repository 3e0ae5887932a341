"""The background QThread that hosts an engine, and the runner that emits its events as signals in the GUI thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from PySide6.QtCore import QObject, QThread, Signal

from app.services.gui_calls import GuiCalls
from qlora_engine.client import Engine, InlineEngine, ProcessEngine
from qlora_engine.control import STOP_DISCARD, STOP_SAVE
from qlora_engine.errors import EngineError
from qlora_engine.events import TERMINAL, Event, RunFailed
from qlora_engine.jobs import Job
from qlora_engine.spare import Spare

EngineFactory = Callable[[], Engine]


def engine_factory(mode: str, spare: Spare | None = None) -> EngineFactory:
    """`process` (default) or `inline`: the same events from a child process, that of `spare` where it waits, or from the
    QThread itself."""
    return InlineEngine if mode == "inline" else partial(ProcessEngine, spare)


class EngineThread(QThread):
    """Runs one job; each event is handed to `hear` in this thread, and `over` is called there as the last act.

    `send` and `request_stop` of its engine may be called from any thread: they set flags or write to the child's pipe.
    """

    def __init__(
        self, job: Job, engine: Engine, hear: Callable[[Event], None], over: Callable[[], None]
    ) -> None:
        super().__init__()
        self._job, self._engine, self._hear, self._over = job, engine, hear, over

    @property
    def engine(self) -> Engine:
        return self._engine

    def run(self) -> None:
        last: Event | None = None
        try:
            for event in self._engine.run(self._job):
                last = event
                self._hear(event)
        except Exception as error:
            logging.getLogger(__name__).exception("the engine thread failed")
            last = RunFailed("app.bug", f"The engine thread failed: {type(error).__name__}: {error}", "this is a bug; the log has the details")  # fmt: skip
            self._hear(last)
        if not isinstance(last, TERMINAL):
            self._hear(RunFailed("engine.no_end", "The engine ended without a word", "try again"))
        self._over()


class JobRunner(QObject):
    """At most one job at a time, its events in the GUI thread.

    Signals: `started` when a job begins; `event_arrived(Event)`; `ended(Event)` with the terminal event, once the
    thread is gone and another job can be started.
    """

    started = Signal()
    event_arrived = Signal(object)
    ended = Signal(object)

    def __init__(self, make_engine: EngineFactory, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.make_engine = make_engine
        self._thread: EngineThread | None = None
        self._last: Event | None = None
        self._is_shut_down = False
        self._calls = GuiCalls(self)

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    @property
    def engine(self) -> Engine | None:
        return self._thread.engine if self._thread is not None else None

    def start(self, job: Job) -> None:
        """Begin; does nothing while another job runs, or after `shut_down`."""
        if self._thread is not None or self._is_shut_down:
            return
        self._last = None
        self._thread = EngineThread(
            job,
            self.make_engine(),
            hear=lambda event: self._calls.post(partial(self._take, event)),
            over=lambda: self._calls.post(self._close),
        )
        self._thread.start()
        self.started.emit()

    def send(self, command: Mapping[str, Any]) -> None:
        if self._thread is not None:
            self._thread.engine.send(command)

    def stop(self, mode: str = STOP_SAVE) -> None:
        if self._thread is not None:
            self._thread.engine.request_stop(mode)

    def leave(self) -> bool:
        """Let what runs go on without this window, and hear no more of it; False if it cannot."""
        leave = getattr(self.engine, "leave", None)
        if leave is None:
            return False
        leave()
        return True

    def shut_down(self, wait_ms: int = 5000) -> None:
        """End what runs, now, for good and without another word: a job that does not listen is killed."""
        self._is_shut_down = True
        self.blockSignals(True)
        thread = self._thread
        if thread is None:
            return
        thread.engine.request_stop(STOP_DISCARD)
        if not thread.wait(wait_ms):
            kill = getattr(thread.engine, "kill", None)
            if kill is not None:
                kill()
            thread.wait(wait_ms)

    def _take(self, event: Event) -> None:
        if isinstance(event, TERMINAL):
            self._last = event
        self.event_arrived.emit(event)

    def _close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.wait()  # and with the last reference to it, here, it is gone
        if self._last is not None:
            self.ended.emit(self._last)


class NewestJob(QObject):
    """Hears only the newest job of a runner: a newer one ends the older, and begins once that is gone.

    Signals: `event_arrived(Event)` of the newest job; `ended` whenever the engine is gone and none waits.
    """

    event_arrived = Signal(object)
    ended = Signal()

    def __init__(self, runner: JobRunner) -> None:
        super().__init__()
        self._runner = runner
        self._wanted: Job | None = None
        self._running: Job | None = None
        runner.event_arrived.connect(self._hear)
        runner.ended.connect(self._next)

    @property
    def is_wanted(self) -> bool:
        """True until the newest job has ended or was dropped."""
        return self._wanted is not None

    def ask(self, job: Job) -> None:
        self._wanted = job
        if self._runner.is_running:
            self._runner.stop()
        else:
            self._start(job)

    def drop(self) -> None:
        """Hear no more of it."""
        self._wanted = None
        self._runner.stop()

    def _start(self, job: Job) -> None:
        self._running = job
        self._runner.start(job)

    def _hear(self, event: Event) -> None:
        if self._running is None or self._running is not self._wanted:
            return
        if isinstance(event, TERMINAL):
            self._wanted = None
        self.event_arrived.emit(event)

    def _next(self) -> None:
        self._running = None
        if self._wanted is not None:
            self._start(self._wanted)
        else:
            self.ended.emit()


def as_error(event: Event) -> EngineError | None:
    """The failure that a terminal event tells; None for any other."""
    if isinstance(event, RunFailed):
        return EngineError(event.code, event.message, event.hint)
    return None
