"""What is found in data, graded, and what of it keeps a run from starting. Light: the window asks here too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qlora_engine.errors import EngineError

BLOCKS, LOOK, NOTE = "blocks", "look", "note"
GRADES = (BLOCKS, LOOK, NOTE)


@dataclass(frozen=True)
class Finding:
    """`count` rows are concerned, `rows` are the first of them, `held_rows` the first in a held-out file of its own;
    `leave_out` names all of those in the dataset where a person may want them left out. `repair` is {"setting", "value"} or {"action"} where
    one click mends it safely (with "adds", the value is put beside those that are set), `repair_text` says what that does."""

    grade: str
    code: str
    text: str
    count: int = 0
    rows: tuple[int, ...] = ()
    repair: Mapping[str, Any] | None = None
    repair_text: str = ""
    held_rows: tuple[int, ...] = ()
    leave_out: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def first_blocking(all_found: Iterable[Finding | Mapping[str, Any]]) -> EngineError | None:
    """What keeps a run from starting, as an error that a person can mend; None where nothing does. The start, `qlora
    check`, `qlora data` and the window's run card all ask this."""
    for each in all_found:
        finding = each if isinstance(each, Finding) else Finding(**each)
        if finding.grade == BLOCKS:
            hint = finding.repair_text or "look with `qlora data`"
            return EngineError(finding.code, finding.text.rstrip("."), hint)
    return None
