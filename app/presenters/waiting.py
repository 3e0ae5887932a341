"""The queue as a person reads it: what is run and waits, when each begins and ends, what became of the others. Without Qt."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.presenters import numerals, sleep
from app.presenters.run_rows import STATES
from app.presenters.words import UNKNOWN, capital, count_text, date_text, plural
from qlora_engine.runs import queue_runner
from qlora_engine.runs.outlook import Forecast, whole_seconds
from qlora_engine.runs.queue import Queue
from qlora_engine.training import awake

DONE_SHOWN = 8
HEADS = ("Place", "Run", "Where", "Begins", "Ends")
GONE = "Deleted"


@dataclass(frozen=True)
class Outlook:
    """The queue and when each of its runs begins and ends, Unix times; None where nothing comparable has run."""

    queue: Queue = field(default_factory=Queue)
    begins: tuple[float | None, ...] = ()
    ends: tuple[float | None, ...] = ()
    over: float | None = None


@dataclass(frozen=True)
class WaitingRow:
    """`key` is the run's folder; `can_move`: it waits, and is not being run."""

    key: str
    cells: tuple[str, ...]
    can_move: bool


@dataclass(frozen=True)
class WaitingState:
    headline: str
    note: str
    rows: tuple[WaitingRow, ...]
    done: tuple[tuple[str, str, str], ...]
    """Run, what became of it, when and why; the newest first."""
    pause_text: str
    is_held: bool


def outlook(queue: Queue, forecasts: Sequence[Forecast], now: float) -> Outlook:
    """To the minute, so that it is another one only when a person would see it."""
    by_run = {one.entry.run_dir: one for one in forecasts}
    found = [by_run[entry.run_dir] for entry in queue.entries]
    return Outlook(
        queue,
        tuple(_minute(one.begins_seconds, now) for one in found),
        tuple(_minute(one.ends_seconds, now) for one in found),
        _minute(whole_seconds(forecasts), now),
    )


def waiting_state(seen: Outlook, titles: Mapping[str, str], now: float) -> WaitingState:
    queue = seen.queue
    held = queue.not_before_unix if queue.is_held(now) else None
    return WaitingState(
        headline=_headline(seen, now),
        note=_note(queue, held, now),
        rows=_rows(seen, titles, now),
        done=tuple(_done(queue, titles, now)),
        pause_text="Go on with the queue" if queue.is_paused else "Pause after this run",
        is_held=held is not None,
    )


def ends_of(seen: Outlook, now: float) -> dict[str, str]:
    """Folder -> when the run is over, of those where it is known."""
    pairs = zip(seen.queue.entries, seen.ends, strict=True)
    return {str(entry.run_dir): when_text(end, now) for entry, end in pairs if end is not None}


def when_text(unix: float | None, now: float) -> str:
    """`22:10`, `tomorrow 03:10`, `2026-12-03 08:00`: the local clock."""
    if unix is None:
        return UNKNOWN
    clock, day = numerals.clock(unix), time.localtime(unix)[:3]
    if day == time.localtime(now)[:3]:
        return clock
    # Noon of tomorrow is tomorrow, also on the day on which clocks change.
    year, month, date = time.localtime(now)[:3]
    tomorrow = time.localtime(time.mktime((year, month, date + 1, 12, 0, 0, 0, 0, -1)))[:3]
    return f"tomorrow {clock}" if day == tomorrow else date_text(unix)


def _minute(seconds: float | None, now: float) -> float | None:
    return None if seconds is None else round((now + seconds) / 60) * 60.0


def _headline(seen: Outlook, now: float) -> str:
    if seen.queue.problem:
        return f"{capital(seen.queue.problem)}."
    count = len(seen.queue.entries)
    if not count:
        return "Nothing waits. Put a draft or a broken-off run into the queue, and it is run when the device is free."
    over = (
        "when it is over is not known"
        if seen.over is None
        else f"all is over about {when_text(seen.over, now)}"
    )
    return f"{plural(count, 'run')} in the queue: {over}."


def _note(queue: Queue, held: float | None, now: float) -> str:
    if queue.is_paused:
        return "The queue pauses: what is being run goes on, nothing else begins."
    if held is not None:
        return f"Nothing begins before {when_text(held, now)}. {sleep.until_then(awake.why_not())}"
    return ""


def _rows(seen: Outlook, titles: Mapping[str, str], now: float) -> tuple[WaitingRow, ...]:
    found, place = [], 0
    for entry, begins, ends in zip(seen.queue.entries, seen.begins, seen.ends, strict=True):
        is_run, key = entry.runner is not None, str(entry.run_dir)
        place += not is_run
        where = str((entry.runner or {}).get("place") or entry.gpu)
        cells = (
            "now" if is_run else count_text(place),
            titles.get(key, entry.run_dir.name),
            capital(queue_runner.title(where)) if where else "Any device" if entry.device == "auto" else entry.device.upper(),
            "has begun" if is_run else when_text(begins, now),
            when_text(ends, now),
        )  # fmt: skip
        found.append(WaitingRow(key, cells, not is_run))
    return tuple(found)


def _done(queue: Queue, titles: Mapping[str, str], now: float) -> list[tuple[str, str, str]]:
    return [
        (
            titles.get(str(one.run_dir), one.run_dir.name),
            STATES[one.state][1] if one.state in STATES else GONE,
            ": ".join(part for part in (when_text(one.ended_unix, now), one.error) if part),
        )
        for one in reversed(queue.done[-DONE_SHOWN:])
    ]
