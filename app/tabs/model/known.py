"""The known models as a list to choose from: which are shown, with what a machine makes of each. Without Qt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from app.presenters.words import UNKNOWN, bytes_text, count_text, parameters_text, plural
from qlora_engine.config import TrainingConfig
from qlora_engine.memory import choosing
from qlora_engine.memory.choosing import USUAL_LENGTH, Choice, Room
from qlora_engine.models import catalog

TUNED_TO = {True: "chat", False: "text", None: UNKNOWN}
BY_SIZE = 1
"""The column that the list is ordered by at first."""


@dataclass(frozen=True)
class Wish:
    """What of the list is to be seen: words of a name, a type or a licence, and of which kind."""

    query: str = ""
    only_fitting: bool = False
    only_chat: bool = False
    only_here: bool = False


@dataclass(frozen=True)
class KnownRow:
    """A model of the list: what is read under `heads`, and what each column is ordered by."""

    name: str
    texts: tuple[str, ...]
    keys: tuple[str | int, ...]


@dataclass(frozen=True)
class Judged:
    """Every known model in one room, the largest first; `cached`: hub names of those that the hub's cache holds."""

    choices: tuple[Choice, ...]
    rows: tuple[KnownRow, ...]
    room: Room
    cached: frozenset[str | None]


def heads() -> tuple[str, ...]:
    """The titles of the columns."""
    needs = f"At {count_text(USUAL_LENGTH)} tokens"
    return (
        "Model",
        "Parameters",
        "Active",
        "Context",
        "Tuned to",
        "Download",
        needs,
        "Longest rows",
        "Licence",
    )


def judged(config: TrainingConfig, gpu: str | None) -> Judged:
    """By this machine or a GPU of the table; half a second of counting, so not in the GUI thread."""
    room = choosing.room_of(gpu) if gpu else choosing.room_here()
    cached = frozenset(name for name, _ in catalog.cached_models())
    choices = tuple(choosing.choices(config, room))
    rows = tuple(KnownRow(one.model.name, _texts(one, room, cached), _keys(one)) for one in choices)
    return Judged(choices, rows, room, cached)


def shown(found: Judged, wish: Wish) -> frozenset[str]:
    """Names of the models that `wish` leaves."""
    return frozenset(one.model.name for one in found.choices if _is_wished(one, wish, found))


def summary(found: Judged | None, count: int) -> str:
    """What stands below the list; `count` models of it are shown."""
    if found is None:
        return "Looking at every known model\u2026"
    return (
        f"{plural(count, 'model')} of {count_text(len(found.rows))}. Judged by {found.room.title}: {bytes_text(found.room.usable_bytes)}, one "
        "row at a time, otherwise with this draft's settings."
    )


def _is_wished(one: Choice, wish: Wish, found: Judged) -> bool:
    return (
        one.model.matches(wish.query)
        and (not wish.only_fitting or one.fits(found.room))
        and (not wish.only_chat or bool(one.model.is_chat))
        and (not wish.only_here or one.model.hub_id in found.cached)
    )


def _texts(one: Choice, room: Room, cached: Collection[str | None]) -> tuple[str, ...]:
    model, facts = one.model, one.model.facts()
    here = " (on this computer)" if model.hub_id in cached else ""
    needs = bytes_text(one.likely_bytes) + ("" if one.fits(room) else ", too large")
    return (
        model.name + here,
        parameters_text(facts.parameters),
        parameters_text(facts.active_parameters) if facts.stacked else "",
        count_text(facts.max_positions),
        TUNED_TO[model.is_chat],
        bytes_text(model.download_bytes),
        needs + (f" + {bytes_text(one.host_bytes)} of the computer's" if one.host_bytes else ""),
        count_text(one.longest) if one.longest else "none",
        model.licence or UNKNOWN,
    )


def _keys(one: Choice) -> tuple[str | int, ...]:
    model, facts = one.model, one.model.facts()
    return (
        model.name,
        facts.parameters,
        facts.active_parameters if facts.stacked else 0,
        facts.max_positions or 0,
        TUNED_TO[model.is_chat],
        model.download_bytes or 0,
        one.likely_bytes,
        one.longest or 0,
        model.licence or "",
    )
