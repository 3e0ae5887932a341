"""Answers marked as wanted or not, one a row (`label`: true or false), as sets for KTO have them. Torch-free."""

from __future__ import annotations

from typing import Any

from qlora_engine.data.conversation import RowProblem
from qlora_engine.data.formats.kind import Detection, Keys, Row

MARKS = ("label", "kto_tag")
WRITTEN = {"true": True, "false": False}
UNWANTED = "its answer is marked as not wanted"
CHOSEN_ALONE = 'data.preference = "chosen"'


def require_wanted(row: Row, detection: Detection, keys: Keys) -> None:
    """Refuse a row whose answer is not wanted, unless a person said that the marks are to be ignored.

    Raises:
        RowProblem: it is not wanted.
    """
    for key in MARKS:
        is_wanted = _mark(row.get(key))
        if is_wanted is None or {"rejected", key} & set(detection.ignore):
            continue
        if not is_wanted:
            said = f"{UNWANTED} ({key} is false)"
            ways = f'{CHOSEN_ALONE} leaves such rows out, data.ignore = ["rejected"] trains them too'
            raise RowProblem(said if detection.wants_chosen else f"{said}; {ways}")
        keys.use(key)


def _mark(value: Any) -> bool | None:
    """True or false, also as a table of text writes it; None for anything else, such as the number of a class."""
    if isinstance(value, bool):
        return value
    return WRITTEN.get(value.strip().lower()) if isinstance(value, str) else None
