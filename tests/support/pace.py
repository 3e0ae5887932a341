"""How slow this computer is just now, so that a limit in seconds means the same here, on an older one and on a busy one."""

from __future__ import annotations

import time
from collections.abc import Callable

QUIET_SECONDS = 0.0105
"""What `_work` takes on the quiet machine on which the suite's limits were set (two cores of 2.6 GHz, Python 3.11)."""


def slowness(clock: Callable[[], float] = time.thread_time, tries: int = 5) -> float:
    """1.0 on that machine or a faster one, else how many times longer a fixed piece of work takes at its best.

    `clock` is the one that the limit is in: a thread's processor time grows with cold caches and a slower clock,
    `time.perf_counter` with every program that wants the processor too.
    """
    took = []
    for _ in range(tries):
        began = clock()
        _work()
        took.append(clock() - began)
    return max(1.0, min(took) / QUIET_SECONDS)


def limit(quiet: float, clock: Callable[[], float] = time.thread_time) -> float:
    """`quiet`, which holds where nothing else runs, as it is to be held here and now: longer by how slow this computer
    is, and by half again, since what else runs also takes caches and memory that no fixed piece of work feels."""
    return 1.5 * quiet * slowness(clock)


def _work() -> int:
    """What an interpreter does all day: calls, dictionaries, strings, small objects."""
    kept: dict[str, list[int]] = {}
    for number in range(60_000):
        kept.setdefault(f"{number % 701}", []).append(number * number % 97)
    return sum(len(values) + max(values) for values in sorted(kept.values()))
