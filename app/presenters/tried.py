"""What can be tried: runs by name, which of them stand on one base, and the generation settings in words. Without Qt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.presenters import numerals
from app.presenters.runcard import short_name
from app.presenters.runs import loss_text
from app.presenters.words import capital, count_text, plural
from qlora_engine.errors import EngineError
from qlora_engine.evaluate.origin import BaseKey, base_key, why_not_beside
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.summary import RunSummary


@dataclass(frozen=True)
class Choice:
    """One run to put beside the others. `tip` says why it cannot be, or what it is."""

    run_dir: str
    title: str
    tip: str
    is_possible: bool
    is_chosen: bool


def bases_of(summaries: Sequence[RunSummary]) -> dict[str, BaseKey | None]:
    """The base of each run by its folder; reads their records."""
    found: dict[str, BaseKey | None] = {}
    for summary in summaries:
        try:
            found[str(summary.path)] = base_key(RunFolder(summary.path).record())
        except EngineError:
            found[str(summary.path)] = None
    return found


def choices(
    runs: Sequence[RunSummary],
    bases: Mapping[str, BaseKey | None],
    source: str,
    chosen: frozenset[str],
) -> tuple[Choice, ...]:
    """The other runs, those of the same base first. Beside a plain model the engine decides, and says why not."""
    own = bases.get(source)
    found = []
    for summary in runs:
        path = str(summary.path)
        if path == source:
            continue
        reason = why_not_beside(own, bases.get(path)) if own is not None else ""
        tip = (
            capital(reason) if reason else f"{short_name(summary.model)}, held-out loss {loss_text(summary)}"
        )
        found.append(Choice(path, summary.run_id, tip, not reason, path in chosen and not reason))
    return tuple(sorted(found, key=lambda choice: not choice.is_possible))


def settings_text(settings: Mapping[str, Any]) -> str:
    """`Greedy, at most 128 tokens`."""
    longest = f"at most {plural(int(settings.get('max_new_tokens', 0)), 'token')}"
    penalty = settings.get("repetition_penalty", 1.0)
    more = f", repetition penalty {numerals.short(penalty)}" if penalty != 1.0 else ""
    if not settings.get("do_sample"):
        return f"Greedy, {longest}{more}"
    drawn = f"temperature {numerals.short(settings['temperature'])}, top-p {numerals.short(settings['top_p'])}, top-k {count_text(settings['top_k'])}"
    return f"Sampled with {drawn}, seed {settings['seed']}, {longest}{more}"


def speed_text(tokens: int, seconds: float) -> str:
    """`32.0 tokens/s`; empty for nothing said."""
    return (
        numerals.measured(numerals.decimal(tokens / seconds, 1), "tokens/s") if tokens and seconds > 0 else ""
    )
