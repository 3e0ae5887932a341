"""A thread that ends before it has begun is an error for whoever starts it. Torch-free.

`Thread.start` waits until the new thread says that it runs. Where memory runs out in that very moment the thread ends without a
word, and Python (3.11 to 3.13) waits for ever. In an engine every start, a library's too, waits for half a minute at most.
"""

from __future__ import annotations

import threading

SLICE_SECONDS, SLICES = 0.1, 300
"""In slices: a process that is stopped meanwhile, or sleeps with the computer, misses one of them and not all."""
MESSAGE = "can't start new thread"
"""As Python says where the system has none left (out_of_memory)."""

_python_start = threading.Thread.start


class _Begun(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            return super().wait(timeout)
        for _ in range(SLICES):
            if super().wait(SLICE_SECONDS):
                return True
        raise RuntimeError(MESSAGE)


def _start(self: threading.Thread) -> None:
    begun = getattr(self, "_started", None)
    if isinstance(begun, threading.Event) and not begun.is_set():
        self._started = _Begun()  # type: ignore[attr-defined]
    _python_start(self)


def bound() -> None:
    """From here on, in this process."""
    threading.Thread.start = _start  # type: ignore[method-assign]
