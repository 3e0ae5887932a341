"""How rows are shared between training and measuring, and what becomes of the thoughts before an answer, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.presenters.words import count_text, counted, percent_text
from app.tabs.data.presenters.rows import Rendered, Token, is_own_file, visible
from qlora_engine.config import DataSettings
from qlora_engine.knobs import knobs_of


@dataclass(frozen=True)
class PolicyLine:
    """One policy on reasoning: `words` say what it does with this model's template."""

    name: str
    title: str
    words: str


@dataclass(frozen=True)
class SplitState:
    headline: str
    facts: tuple[tuple[str, ...], ...]
    policies: tuple[PolicyLine, ...]
    chosen: str
    example_of: str
    example: Rendered | None


def split_state(
    settings: DataSettings, seed: int, report: Mapping[str, Any] | None, reasoning: Mapping[str, Any] | None
) -> SplitState:
    choices = knobs_of(DataSettings)["reasoning"].choices or {}
    known = (reasoning or {}).get("policies", {})
    policies = tuple(PolicyLine(name, title, _words(known.get(name))) for name, title in choices.items())
    chosen = known.get(settings.reasoning)
    return SplitState(
        _headline(settings), _facts(settings, seed, report), policies, settings.reasoning, _example_of(reasoning),
        _rendered(chosen) if chosen else None,
    )  # fmt: skip


def _headline(settings: DataSettings) -> str:
    if settings.held_out_path:
        return f"Measured on a file of its own: {Path(settings.held_out_path).name}"
    if settings.path == "starter":
        return "Measured on the starter's own held-out rows"
    if not settings.held_out_fraction:
        return "Nothing is held out: the run cannot show whether the model learns or memorises"
    return f"{percent_text(settings.held_out_fraction)} of the rows are held out and never trained on"


def _facts(
    settings: DataSettings, seed: int, report: Mapping[str, Any] | None
) -> tuple[tuple[str, ...], ...]:
    is_own = is_own_file(settings)
    facts: list[tuple[str, ...]] = []
    if report is not None:
        held, trained = int(report["held_out_rows"]), int(report["train_rows"])
        facts.append(("Now", f"{count_text(trained)} to train on, {count_text(held)} held out"))
        same = int(report.get("duplicate_rows", 0)) + int(report.get("near_duplicate_rows", 0))
        facts.append(("Copies", f"{counted(same, 'row', 'repeat')} another, or nearly: never on both sides"))
        overlaps = [f for f in report.get("findings", ()) if f["code"] == "data.overlap"]
        facts += [("Overlap", str(finding["text"])) for finding in overlaps]
    if is_own:
        facts.append(("Rule", "Training rows that the held-out file repeats, or nearly, are left out"))
    else:
        facts.append(
            (
                "Rule",
                f"The same share of every source, by the rows' content and the seed {seed}: a row keeps its side when others are added",
            )
        )
    return tuple(facts)


def _words(example: Mapping[str, Any] | None) -> str:
    if example is None:
        return ""
    return str(example["problem"] or example["words"])


def _example_of(reasoning: Mapping[str, Any] | None) -> str:
    if not reasoning:
        return ""
    if reasoning["is_own"]:
        return f"Row {count_text(reasoning['row'])} of the data, as this model's template renders it"
    return "A small conversation of our own, as this model's template renders it; the data have no reasoning"


def _rendered(example: Mapping[str, Any]) -> Rendered | None:
    tokens = tuple(
        Token(visible(text), text, 0, state, place, "")
        for place, (text, state) in enumerate(example["tokens"])
    )
    return Rendered(str(example["words"] or example["problem"] or ""), tokens, 0, 0) if tokens else None
