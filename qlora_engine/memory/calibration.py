"""The constants of an estimate that only measuring can give, each with its source: `resources/gpu/calibration.json`.

`packaging/gpu_report.py` replaces them by what a report has measured. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from qlora_engine import parsing, paths


@dataclass(frozen=True)
class Reserve:
    """What the allocator holds beyond the peak, as a share of what comes and goes in a step."""

    low: float
    likely: float
    high: float
    source: str


@dataclass(frozen=True)
class CardContext:
    """What an empty process took on one kind of card."""

    bytes_: int
    source: str


def reserve() -> Reserve:
    return Reserve(**_kept()["reserve_share"])


def unmeasured_context() -> dict[str, Any]:
    """low_bytes, likely_bytes, high_bytes and source of a card that nobody has measured."""
    return dict(_kept()["context"])


def cards() -> dict[str, CardContext]:
    """By the name that the driver gives the card."""
    return {name: CardContext(one["context_bytes"], one["source"]) for name, one in _kept()["cards"].items()}


@cache
def _kept() -> dict[str, Any]:
    file = paths.resources_dir() / "gpu" / "calibration.json"
    return parsing.object_from_json(file.read_text(encoding="utf-8"))
