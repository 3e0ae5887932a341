"""How a person's wishes reach a running job: flags looked at between micro-batches, and a queue of commands.

Thread-safe; set from any thread, read by the job's own.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from qlora_engine.errors import Cancelled

STOP_SAVE = "save"
STOP_DISCARD = "discard"
ONE_SHOTS = ("save", "evaluate", "sample")


class Control:
    """The wishes of whoever drives a job."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._running = threading.Event()
        self._running.set()
        self._lock = threading.Lock()
        self._one_shots: set[str] = set()
        self.began = time.perf_counter()
        """When the job began: a run tells what its start took from here on."""
        self.stop_mode = STOP_SAVE
        self.is_orphaned = False
        """True once whoever drove the job has vanished: save and end."""
        self.commands: queue.Queue[Mapping[str, Any]] = queue.Queue()
        """Commands of long-lived jobs (chat)."""

    @property
    def is_stop_requested(self) -> bool:
        return self._stop.is_set()

    @property
    def is_pause_requested(self) -> bool:
        return not self._running.is_set()

    def request_stop(self, mode: str = STOP_SAVE) -> None:
        """Ask the job to end soon: with a checkpoint (`save`) or without (`discard`)."""
        self.stop_mode = mode
        self._stop.set()
        self._running.set()
        self.commands.put({"command": "stop", "mode": mode})

    def request_pause(self) -> None:
        self._running.clear()

    def request_continue(self) -> None:
        self._running.set()

    def wait_while_paused(self, timeout_seconds: float | None = None) -> bool:
        """Block until continued or stopped; False when the time ran out first."""
        return self._running.wait(timeout_seconds)

    def request(self, one_shot: str) -> None:
        """Ask for one of `ONE_SHOTS` at the next step boundary."""
        with self._lock:
            self._one_shots.add(one_shot)

    def take_requests(self) -> frozenset[str]:
        """The one-shot wishes since the last call."""
        with self._lock:
            taken, self._one_shots = frozenset(self._one_shots), set()
        return taken

    def check(self) -> None:
        """Raise `Cancelled` when asked to stop: for long work outside the training loop."""
        if self.is_stop_requested:
            raise Cancelled("stopped by the user")

    def handle(self, command: Mapping[str, Any]) -> None:
        """Apply one command as it arrives from a driver: stop, pause, continue, save, evaluate, sample, or one
        for the job's own queue."""
        match command.get("command"):
            case "stop":
                self.request_stop(str(command.get("mode", STOP_SAVE)))
            case "pause":
                self.request_pause()
            case "continue":
                self.request_continue()
            case str(name) if name in ONE_SHOTS:
                self.request(name)
            case _:
                self.commands.put(command)
