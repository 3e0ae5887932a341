"""The doctor's findings as lines on a terminal, with the rows that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SETS = {"rows": "", "held_rows": "held-out "}
"""The rows that a finding names: those of the dataset, those of a held-out file."""


def finding_text(finding: Mapping[str, Any]) -> str:
    """One finding as a line: `look: 3 rows hold ... (rows 4, 9, 12)`."""
    repair = f"; {finding['repair_text']}" if finding["repair_text"] and finding["grade"] == "blocks" else ""
    return f"{finding['grade']}: {with_rows(finding)}{repair}"


def with_rows(finding: Mapping[str, Any]) -> str:
    """Its sentence without the full stop, and the first rows that it is about."""
    places = [f"{of}{numbered(finding[name])}" for name, of in SETS.items() if finding.get(name)]
    return finding["text"].rstrip(".") + (f" ({'; '.join(places)})" if places else "")


def numbered(numbers: Sequence[int]) -> str:
    """`row 4`, or `rows 4, 9, 12`."""
    return f"{'row' if len(numbers) == 1 else 'rows'} {', '.join(map(str, numbers))}"
