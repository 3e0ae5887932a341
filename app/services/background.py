"""Short torch-free work off the GUI thread: reading model facts, listing runs, looking at a file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from PySide6.QtCore import QObject

from app.services.gui_calls import GuiCalls
from qlora_engine.errors import EngineError

Done = Callable[[Any], None]
Failed = Callable[[EngineError], None]
THREADS = 2


class Background(QObject):
    """Runs functions in a small pool; their results come back in the GUI thread.

    Of several calls under one key only the newest is answered, so that a slow old look at a folder never overwrites
    a quick new one. Python's own pool: a QRunnable's Python half can be freed while Qt still uses it.
    """

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="background")
        self._newest: dict[str, int] = {}
        self._waiting: dict[str, tuple[Done, Failed | None]] = {}
        self._count = 0
        self._is_closed = False
        self._calls = GuiCalls(self)

    def submit(self, key: str, work: Callable[[], Any], done: Done, failed: Failed | None = None) -> None:
        """Run `work` in a pool thread, then `done(result)` or `failed(error)` here. Nothing after `close`."""
        if self._is_closed:
            return
        self._count += 1
        self._newest[key] = self._count
        self._waiting[key] = (done, failed)
        self._pool.submit(self._carry_out, key, self._count, work)

    def is_busy(self, key: str) -> bool:
        return key in self._waiting

    def close(self) -> None:
        """Forget what has not begun and wait for what has; nothing is delivered any more."""
        self._is_closed = True
        self._waiting.clear()
        self._calls.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _carry_out(self, key: str, number: int, work: Callable[[], Any]) -> None:
        result: Any = None
        error: EngineError | None = None
        try:
            result = work()
        except EngineError as known:
            error = known
        except Exception as unknown:
            logging.getLogger(__name__).exception("%s failed", key)
            error = EngineError(
                "app.bug", f"{type(unknown).__name__}: {unknown}", "this is a bug; the log has the details"
            )
        self._calls.post(partial(self._deliver, key, number, result, error))

    def _deliver(self, key: str, number: int, result: Any, error: Any) -> None:
        if self._newest.get(key) != number or key not in self._waiting:
            return
        done, failed = self._waiting.pop(key)
        if error is None:
            done(result)
        elif failed is not None:
            failed(error)
