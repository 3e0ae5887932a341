"""The queue: drafts and broken-off runs that are carried out one after another, also when the window is closed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject

from app.frame.drafts import Drafts
from app.studio import Studio
from app.widgets.banner import Banner
from qlora_engine.errors import EngineError
from qlora_engine.runs import queue, queue_runner
from qlora_engine.runs.queue import Queue
from qlora_engine.runs.record import RunFolder


class Queueing(QObject):
    """A runner, a process of its own, is started as soon as this window trains nothing itself."""

    def __init__(self, studio: Studio, drafts: Drafts, banner: Banner) -> None:
        super().__init__(banner)
        self._studio, self._drafts, self._banner = studio, drafts, banner
        self.is_paused = False
        studio.trainer.ended.connect(self.go_on)

    def look(self) -> None:
        """At the start of the window: what waits goes on."""
        self._do(queue.read)

    def add(self, run_dir: Path | None = None) -> None:
        """A run, or what is shown: a draft without a folder becomes a planned run first."""
        job = self._studio.workspace.job
        job.save_now()
        path = run_dir or self._studio.shown.path
        if path is None:
            folder = self._drafts.keep(job.config)
            path = folder.path if folder is not None else None
        if path is not None:
            found = path
            self._do(lambda: queue.add(RunFolder(found)))

    def remove(self, path: Path) -> None:
        self._do(lambda: queue.remove(path))

    def move(self, path: Path, by: int) -> None:
        """Earlier (-1) or later (+1); 0: next of all."""
        place = queue.places().get(str(path), 1)
        self._do(lambda: queue.move(path, max(1, place + by) if by else 1))

    def pause(self) -> None:
        """Begin no further run, or go on."""
        self._do(lambda: queue.pause(not queue.read().is_paused))

    def begin_at(self, unix: float | None) -> None:
        """Begin no run before this moment; None: at once."""
        self._do(lambda: queue.start_at(unix))

    def go_on(self, *_: object) -> None:
        """Start a runner where something waits, unless this window trains: both would be on one device."""
        if not self._studio.trainer.is_running and not self.is_paused:
            self._studio.background.submit(
                "runner", _ensure, lambda _: self._studio.history.refresh(), self._refuse
            )

    def _do(self, act: Callable[[], Any]) -> None:
        self._studio.background.submit("queue", act, self._done, self._refuse)

    def _done(self, found: Queue) -> None:
        self.is_paused = found.is_paused
        self._studio.history.refresh()
        self._studio.outlook.look()
        if any(entry.runner is None for entry in found.entries):
            self.go_on()

    def _refuse(self, error: EngineError) -> None:
        self._banner.say(f"{error.message}.", error.hint, "bad", ("Dismiss", lambda: self._banner.say("")))


def _ensure() -> list[str]:
    """For a pool thread: which GPUs there are is asked of the driver.

    Raises:
        EngineError: no process can be started.
    """
    try:
        return queue_runner.ensure_running()
    except OSError as error:
        raise EngineError(
            "queue.runner",
            f"the queue cannot be started: {error}",
            "look for the reason with `qlora queue run`",
        ) from error
