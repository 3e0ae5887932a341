"""Lets a blocking function report progress while a generator yields it as events."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

from qlora_engine.events import Event

T = TypeVar("T")
Emit = Callable[[Event], None]


def events_while(work: Callable[[Emit], T]) -> Generator[Event, None, T]:
    """Run `work(emit)` in a thread and yield each emitted event as it comes; returns what `work` returned.

    Use as `result = yield from events_while(lambda emit: load(..., emit))`. An exception of `work` is raised here.
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
    while (event := outbox.get()) is not None:
        yield event
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
