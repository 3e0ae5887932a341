"""Lets a blocking function report progress while a generator yields it as events."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

from qlora_engine.events import Event

T = TypeVar("T")
LOOK_SECONDS = 1.0
Emit = Callable[[Event], None]


def events_while(work: Callable[[Emit], T]) -> Generator[Event, None, T]:
    """Run `work(emit)` in a thread and yield each emitted event as it comes; returns what `work` returned.

    Use as `result = yield from events_while(lambda emit: load(..., emit))`. An exception of `work` is raised here.

    Raises:
        MemoryError: the thread ended without a word, as one does that has no memory left to say so.
    """
    outbox: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work(outbox.put))
        except BaseException as error:  # noqa: BLE001 - carried over to the generator's thread
            errors.append(error)
        finally:
            outbox.put(None)

    thread = threading.Thread(target=body, name="engine-work", daemon=True)
    thread.start()
    while (event := _next(outbox, thread)) is not None:
        yield event
    thread.join()
    if errors:
        raise errors[0]
    if not results:
        raise MemoryError
    return results[0]


def _next(outbox: queue.SimpleQueue[Event | None], thread: threading.Thread) -> Event | None:
    """What comes next, None at the end: said by the thread, or seen."""
    while True:
        is_over = not thread.is_alive()
        try:
            return outbox.get(timeout=0 if is_over else LOOK_SECONDS)
        except queue.Empty:
            if is_over:
                return None
