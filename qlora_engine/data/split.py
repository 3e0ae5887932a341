"""Which rows are trained on and which are held out: by hash, source by source, copies always on one side. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_engine.data import near
from qlora_engine.data.tokens import TokenStore

EXACT = "it is also in the held-out data"
NEAR = "it is nearly a copy of a row of the held-out data"


@dataclass(frozen=True, eq=False)
class Sides:
    """Places of rows in the token stores. `left_out` are training rows with a copy in the held-out file, by reason;
    `duplicates` and `near_duplicates` count rows that repeat an earlier one, `copies` are their places."""

    train: Any
    held_out: Any
    duplicates: int
    near_duplicates: int
    copies: Any
    near_copies: Any
    left_out: dict[str, Any] = field(default_factory=dict)


def by_share(tokens: TokenStore, fraction: float, seed: int, kept: Any) -> Sides:
    """A share of every source aside. A row keeps its side when others are added, but for a few at the border.

    `kept` are the places of the rows that there are at all: the others are as if the file had never held them.
    """
    keys = tokens.hashes("key")[kept]
    groups = near.groups(keys, tokens.hashes("loose")[kept], tokens.minima()[kept])
    held = _chosen(keys, groups, tokens.column("source")[kept], fraction, seed)[groups]
    exact, nearly = _copies(keys, groups)
    return Sides(kept[~held], kept[held], len(exact), len(nearly), kept[exact], kept[nearly])


def by_file(tokens: TokenStore, held_out: TokenStore, kept: Any) -> Sides:
    """The held-out file's rows aside; training rows that it repeats, or nearly, are left out. `kept` as in `by_share`."""
    import numpy as np

    keys = np.concatenate([tokens.hashes("key")[kept], held_out.hashes("key")])
    loose = np.concatenate([tokens.hashes("loose")[kept], held_out.hashes("loose")])
    groups = near.groups(keys, loose, np.concatenate([tokens.minima()[kept], held_out.minima()]))
    count = len(kept)
    is_near = np.isin(groups[:count], groups[count:])
    is_exact = np.isin(keys[:count], keys[count:])
    exact, nearly = _copies(keys[:count], groups[:count])
    left_out = {EXACT: kept[is_exact], NEAR: kept[is_near & ~is_exact]}
    return Sides(
        kept[~is_near], np.arange(len(held_out)), len(exact), len(nearly), kept[exact], kept[nearly], left_out
    )


def _chosen(keys: Any, groups: Any, sources: Any, fraction: float, seed: int) -> Any:
    """(rows,) bool at each group's number: held out. Of each source those whose hash with the seed is smallest."""
    import numpy as np

    chosen = np.zeros(len(keys), bool)
    if not len(keys) or fraction <= 0:
        return chosen
    smallest = np.full(len(keys), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, groups, keys)
    heads = np.flatnonzero(groups == np.arange(len(groups)))
    ranks = near.mixed(smallest[heads] ^ near.mixed(np.array([seed], np.uint64) + np.uint64(1)))
    for source in np.flatnonzero(np.bincount(sources)).tolist():
        own = heads[sources[heads] == source]
        if len(own) > 1:
            count = max(1, min(round(fraction * len(own)), len(own) - 1))
            chosen[own[np.argsort(ranks[sources[heads] == source], kind="stable")[:count]]] = True
    return chosen


def _copies(keys: Any, groups: Any) -> tuple[Any, Any]:
    """(places that repeat an earlier row's content, places that nearly do). A group has the number of its first row."""
    import numpy as np

    is_first = np.zeros(len(keys), bool)
    is_first[np.unique(keys, return_index=True)[1]] = True
    return np.flatnonzero(~is_first), np.flatnonzero(is_first & (groups != np.arange(len(groups))))


def weighted(tokens: TokenStore, places: Any, weights: Sequence[float]) -> Any:
    """`places` as often as their source's weight says: 2 twice, 0.5 a half that is always the same."""
    import numpy as np

    if all(weight == 1 for weight in weights):
        return places
    wanted = np.array(weights, np.float64)[tokens.column("source")[places]]
    shares = near.mixed(tokens.hashes("key")[places]).astype(np.float64) / 2.0**64
    times = np.floor(wanted).astype(np.int64) + (shares < wanted % 1)
    return np.repeat(places, times)
