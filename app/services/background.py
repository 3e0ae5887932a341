"""Short torch-free work off the GUI thread: reading model facts, listing runs, looking at a file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QObject, QRunnable, QThreadPool, Signal

from qlora_engine.errors import EngineError

Done = Callable[[Any], None]
Failed = Callable[[EngineError], None]


class Background(QObject):
    """Runs functions in a small pool; their results come back in the GUI thread.

    Of several calls under one key only the newest is answered, so that a slow old look at a folder never overwrites
    a quick new one.
    """

    _answered = Signal(str, int, object, object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(2)
        self._newest: dict[str, int] = {}
        self._waiting: dict[str, tuple[Done, Failed | None]] = {}
        self._count = 0
        self._answered.connect(self._deliver)

    def submit(self, key: str, work: Callable[[], Any], done: Done, failed: Failed | None = None) -> None:
        """Run `work` in a pool thread, then `done(result)` or `failed(error)` here."""
        self._count += 1
        self._newest[key] = self._count
        self._waiting[key] = (done, failed)
        self._pool.start(_Task(self, key, self._count, work))

    def is_busy(self, key: str) -> bool:
        return key in self._waiting

    def close(self) -> None:
        """Forget what has not begun and wait for what has; nothing is delivered any more."""
        self._waiting.clear()
        self._pool.clear()
        self._pool.waitForDone(3000)

    def _deliver(self, key: str, number: int, result: Any, error: Any) -> None:
        if self._newest.get(key) != number or key not in self._waiting:
            return
        done, failed = self._waiting.pop(key)
        if error is None:
            done(result)
        elif failed is not None:
            failed(error)


class _Task(QRunnable):
    def __init__(self, owner: Background, key: str, number: int, work: Callable[[], Any]) -> None:
        super().__init__()
        self._owner, self._key, self._number, self._work = owner, key, number, work

    def run(self) -> None:
        result: Any = None
        error: EngineError | None = None
        try:
            result = self._work()
        except EngineError as known:
            error = known
        except Exception as unknown:
            logging.getLogger(__name__).exception("%s failed", self._key)
            error = EngineError(
                "app.bug", f"{type(unknown).__name__}: {unknown}", "this is a bug; the log has the details"
            )
        with contextlib.suppress(RuntimeError):  # the window may be gone
            self._owner._answered.emit(self._key, self._number, result, error)
