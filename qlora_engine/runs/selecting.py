"""Which runs of a list are shown, and in which order. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qlora_engine.errors import EngineError, did_you_mean
from qlora_engine.runs.index import RunEntry

STATES = ("planned", "queued", "running", "paused", "stopped", "failed", "crashed", "finished", "unreadable")
SORTS: dict[str, tuple[Callable[[RunEntry], Any], bool]] = {
    "created": (lambda e: e.summary.created_unix, True),
    "finished": (lambda e: e.summary.finished_unix, True),
    "name": (lambda e: e.title.lower(), False),
    "state": (lambda e: STATES.index(e.state) if e.state in STATES else len(STATES), False),
    "model": (lambda e: e.summary.model.lower(), False),
    "data": (lambda e: e.summary.data.lower(), False),
    "loss": (lambda e: e.best_loss, False),
    "queue": (lambda e: e.queue_place, False),
}
"""Name -> (what is compared, whether the greatest comes first)."""


def select(
    entries: Iterable[RunEntry],
    *,
    text: str = "",
    states: Sequence[str] = (),
    tags: Sequence[str] = (),
    sort: str = "created",
    reverse: bool = False,
) -> tuple[RunEntry, ...]:
    """Those with every word of `text`, one of `states` and all of `tags`, in the order `sort`; unknown values come last.

    Raises:
        EngineError: no such order or state.
    """
    _require_known("order", [sort], SORTS)
    _require_known("state", states, STATES)
    words, wanted = text.lower().split(), {tag.lower() for tag in tags}
    shown = [
        e
        for e in entries
        if (not states or e.state in states)
        and wanted <= {tag.lower() for tag in e.notes.tags}
        and all(word in _words(e) for word in words)
    ]
    return _sorted(shown, sort, reverse)


def all_tags(entries: Iterable[RunEntry]) -> tuple[str, ...]:
    """Every tag in use, the most used first."""
    counts: dict[str, int] = {}
    for tag in (tag for entry in entries for tag in entry.notes.tags):
        counts[tag] = counts.get(tag, 0) + 1
    return tuple(sorted(counts, key=lambda tag: (-counts[tag], tag.lower())))


def _words(entry: RunEntry) -> str:
    """Everything of a run that a search looks at, as one lowercase text."""
    told = (entry.title, entry.run_id, entry.summary.model, entry.summary.data, entry.state)
    return " ".join((*told, *entry.notes.tags, entry.notes.note)).lower()


def _sorted(entries: list[RunEntry], sort: str, reverse: bool) -> tuple[RunEntry, ...]:
    key, greatest_first = SORTS[sort]
    known = [e for e in entries if key(e) is not None]
    unknown = [e for e in entries if key(e) is None]
    return (*sorted(known, key=key, reverse=greatest_first != reverse), *unknown)


def _require_known(what: str, given: Sequence[str], known: Iterable[str]) -> None:
    for word in given:
        if word not in known:
            raise EngineError("runs.select", f"there is no {what} {word!r}", did_you_mean(word, known))
