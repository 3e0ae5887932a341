"""Questions about rows, answered by an engine that stays open: a page of rows costs no start of a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal

from app.presenters.words import of_text
from app.services.drafting import Drafting
from app.services.engine_thread import JobRunner, as_error
from qlora_engine import config_io
from qlora_engine.errors import EngineError
from qlora_engine.events import DataAnswered, Event, Progressed
from qlora_engine.jobs import DataDeskJob

IDLE_MS = 5 * 60 * 1000
"""How long the engine is kept after its last answer."""
Answer = Callable[[Mapping[str, Any]], None]
Failed = Callable[[EngineError], None]


@dataclass(frozen=True)
class _Question:
    command: Mapping[str, Any]
    done: Answer
    failed: Failed


class DataDesk(QObject):
    """Of one topic only the newest question is answered. Signals: `changed` when a question was asked or answered."""

    changed = Signal()

    def __init__(self, runner: JobRunner, job: Drafting) -> None:
        super().__init__()
        self._runner, self._job = runner, job
        self._waiting: dict[str, _Question] = {}
        self._count = 0
        self.progress = ""
        self._idle = QTimer(self, singleShot=True, interval=IDLE_MS)
        self._idle.timeout.connect(self.rest)
        runner.event_arrived.connect(self._take)
        runner.ended.connect(self._ended)

    def ask(self, topic: str, ask: Mapping[str, Any], done: Answer, failed: Failed = lambda _: None) -> None:
        """Ask about the data of the job as it is now; one of the two is called in the GUI thread, unless asked anew."""
        self._count += 1
        command = {
            "command": "data", "request": self._count, "topic": topic, "ask": dict(ask),
            "config": config_io.to_dict(self._job.config),
        }  # fmt: skip
        self._waiting[topic] = _Question(command, done, failed)
        self._idle.stop()
        if self._runner.is_running:
            self._runner.send(command)
        else:
            self._begin()
        self.changed.emit()

    def is_asked(self, topic: str) -> bool:
        return topic in self._waiting

    def forget(self) -> None:
        """The answers that are under way are about other data."""
        self._waiting.clear()
        self.progress = ""

    def rest(self) -> None:
        """Give the engine back; the next question starts another."""
        self.forget()
        self._idle.stop()
        self._runner.stop()

    def _begin(self) -> None:
        self._runner.start(DataDeskJob())
        for question in self._waiting.values():
            self._runner.send(question.command)

    def _take(self, event: Event) -> None:
        if isinstance(event, Progressed):
            self.progress = f"{event.phase}: {of_text(event.done, event.total or None)} {event.unit}"
            self.changed.emit()
        elif isinstance(event, DataAnswered):
            self._answered(event)

    def _answered(self, event: DataAnswered) -> None:
        question = self._waiting.get(event.topic)
        if question is None or question.command["request"] != event.request:
            return
        del self._waiting[event.topic]
        self.progress = ""
        if not self._waiting:
            self._idle.start()
        if event.error:
            told = event.error
            question.failed(EngineError(str(told["code"]), str(told["message"]), str(told["hint"])))
        else:
            question.done(event.answer)
        self.changed.emit()

    def _ended(self, event: Event) -> None:
        """Questions that came while it was ending go to the next one; if it failed, they have failed."""
        error = as_error(event)
        if error is None:
            if self._waiting:
                self._begin()
            return
        lost, self._waiting = list(self._waiting.values()), {}
        self.progress = ""
        for question in lost:
            question.failed(error)
        self.changed.emit()
