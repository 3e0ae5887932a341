"""What the palette finds: every word of a search must begin or stand in the words of an entry. Without Qt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST = 60


@dataclass(frozen=True)
class Command:
    """`name` is what is done; `words` what a person reads, `keys` the shortcut, `hint` what it is of."""

    name: str
    words: str
    hint: str = ""
    keys: str = ""


def found(commands: Sequence[Command], search: str) -> list[Command]:
    """The fitting ones, those whose words begin with the search first; else in their order."""
    wanted = search.lower().split()
    if not wanted:
        return list(commands[:MOST])
    fitting = [c for c in commands if all(word in f"{c.words} {c.hint}".lower() for word in wanted)]
    return sorted(fitting, key=lambda c: not c.words.lower().startswith(wanted[0]))[:MOST]
