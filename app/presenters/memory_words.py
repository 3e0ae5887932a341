"""The Memory page's sentences: whether it fits, what makes it fit, where the numbers are from, how far off they were."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.presenters import numerals
from app.presenters.in_window import in_window
from app.presenters.memory_sizes import Fitting
from app.presenters.words import (
    bytes_text,
    capital,
    count_text,
    duration_text,
    gib_figure,
    gib_measured,
    gib_text,
    joined,
    percent_text,
    plural,
)
from qlora_engine.config import all_knobs
from qlora_engine.memory import advise
from qlora_engine.memory.explain import Bar, Comparison
from qlora_engine.memory.moments import HOST_BASE_BYTES
from qlora_engine.runs.summary import RunSummary

TONES = {"fits": "good", "fits_low": "warning", "fits_paged": "warning", "too_large": "bad"}


@dataclass(frozen=True)
class Capacity:
    """What the chosen device has; `name` in words."""

    name: str
    total_bytes: int
    usable_bytes: int


@dataclass(frozen=True)
class Remedy:
    """What makes it fit: one change, or the cheapest several. `edits` are (option, value)."""

    text: str
    edits: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class RehearsalStatus:
    """How far the rehearsal of these settings is; `formula_bytes` is the peak as the closed form has it."""

    state: str = ""
    share: float | None = None
    seconds_ago: float | None = None
    problem: str = ""
    formula_bytes: int | None = None


def verdict_of(
    found: Comparison, bar: Bar, capacity: Capacity | None, *, is_double: bool
) -> tuple[str, str, str]:
    """A sentence, what more there is to say, and the tone."""
    reach = _range_text(found, bar)
    if capacity is None:
        return f"Needs about {gib_text(bar.device_likely)}.", reach, ""
    judged = advise.verdict(found.estimate, capacity.usable_bytes, double_quant=is_double)
    first, _, rest = arrow(judged.text).partition("; ")
    more = [_advice_sentence(rest)] if rest else []
    if judged.fits and bar.variant.device_high > capacity.usable_bytes:
        more.append("It is close: at worst it would not.")
    usable = f"{gib_text(capacity.usable_bytes)} of {gib_text(capacity.total_bytes)} can be used."
    tone = "warning" if judged.fits and bar.variant.device_high > capacity.usable_bytes else TONES[judged.kind]  # fmt: skip
    return f"On {capacity.name} it {first}.", " ".join((*more, reach, usable)), tone


def remedy_of(
    found: Comparison, capacity: Capacity | None, fitting: Fitting | None, *, is_double: bool
) -> Remedy | None:
    """The cheapest single change that is enough, else the plan; None where it fits or nothing helps."""
    if capacity is None:
        return None
    judged = advise.verdict(found.estimate, capacity.usable_bytes, double_quant=is_double)
    if judged.advice and judged.advice[0].device_likely <= capacity.usable_bytes:
        first = judged.advice[0]
        return Remedy(f"Make it fit: {arrow(first.change)}", ((first.path, first.value),))
    plan = fitting.plan if fitting is not None and not judged.fits else None
    wanted = {step.path: step.value for step in plan or ()}
    if not wanted:
        return None
    words = joined([_setting_text(path, value) for path, value in wanted.items()])
    return Remedy(f"Make it fit: {words}", tuple(wanted.items()))


def _setting_text(path: str, value: Any) -> str:
    """`micro-batch 1`, `gradient checkpointing on`."""
    knob = all_knobs()[path]
    name = knob.label[:1].lower() + knob.label[1:]
    if isinstance(value, bool):
        return f"{name} {'on' if value else 'off'}"
    return (
        f"{name} {count_text(value)}"
        if isinstance(value, int)
        else f"{name} {(knob.choices or {}).get(value, value)}"
    )


def _range_text(found: Comparison, bar: Bar) -> str:
    """Low, likely and high of what the device will show."""
    variant = bar.variant
    besides = _besides(found)
    if found.estimate.settings["device"] == "cpu":
        return (
            f"The run's tensors take {gib_text(variant.device_likely)}; the program itself about "
            f"{gib_measured(HOST_BASE_BYTES, 1)} more.{besides}"
        )
    return (
        f"The GPU will show about {gib_text(variant.device_likely)}: at least {gib_text(variant.device_low)}, "
        f"at most {gib_text(variant.device_high)}.{besides}"
    )


def _besides(found: Comparison) -> str:
    """What a run takes where it is free, a sentence for each."""
    kept, grouped = found.estimate.kept_weights_bytes, found.estimate.grouped_experts_bytes
    words = f" Where it is free, {bytes_text(kept)} of dequantized weights are kept too, and given up first."
    more = f" In bf16 and where it is free, {bytes_text(grouped)} more let all experts of a block be computed together, and are given up first."
    return f"{words if kept else ''}{more if grouped else ''}"


def taken_besides(bar: Bar, capacity: Capacity | None, besides_bytes: int) -> int:
    """What a run takes besides its estimate (Estimate.besides_bytes), as it decides itself: all of it where that much is free."""
    has_room = capacity is not None and bar.device_likely + besides_bytes <= capacity.usable_bytes
    return besides_bytes if has_room else 0


def verdict_text(needed: int, capacity: Capacity | None) -> str:
    """`fits: 2.87 of 14.1 GiB`; `needed` in bytes of the whole device."""
    if capacity is None:
        return f"about {gib_text(needed)}"
    fits = "fits" if needed <= capacity.usable_bytes else "does not fit"
    return f"{fits}: {gib_figure(needed)} of {gib_measured(capacity.usable_bytes, 1)}"


def saving_of(found: Comparison) -> str:
    """What double quantization saves here, in bytes and bits per parameter: computed, not quoted."""
    double, single = found.bar("double_quant"), found.bar("single_quant")
    saved = single.part("quantization_constants").bytes_ - double.part("quantization_constants").bytes_
    quantized = found.estimate.quantized_parameters
    bits = f", {numerals.decimal(8 * saved / quantized, 3)} bits per quantized parameter" if quantized else ""
    return f"Double quantization saves {bytes_text(saved)} of constants{bits}."


def mark_of(chosen: Bar, rehearsal: RehearsalStatus) -> str:
    """Where the numbers are from: the formula, or a rehearsed step, with the operation at the peak."""
    variant = chosen.variant
    if variant.source == "rehearsal":
        ago = f" {ago_text(rehearsal.seconds_ago)}" if rehearsal.seconds_ago is not None else ""
        return f"Rehearsed{ago} on the real model class, without its weights. {_peak_text(variant.peak_operation)}{_difference(variant.peak_bytes, rehearsal.formula_bytes)}"
    percent = f", {percent_text(rehearsal.share)} done" if rehearsal.share is not None else ""
    then = {
        "waiting": " A rehearsal of one step will check it in a moment.",
        "running": f" Rehearsing one step to check it{percent}.",
        "held": " A rehearsal will check it when the running job is over.",
        "failed": f" It could not be rehearsed: {rehearsal.problem.rstrip('.')}.",
    }.get(rehearsal.state, "")
    return f"Computed by formula. {_peak_text(variant.peak_operation)}{then}"


def _peak_text(operation: str | None) -> str:
    """`loss: mm` is the loss, at its operation mm."""
    if not operation:
        return ""
    place, _, name = operation.partition(": ")
    article = "the " if place != "begin" else ""
    return f"The peak is in {article}{_place(place)}" + (f", at the operation {name}." if name else ".")


def _place(phase: str) -> str:
    return {
        "forward": "forward pass",
        "first layer": "forward pass of the first layer",
        "last layer": "forward pass of the last layer",
        "optimizer": "optimizer's step",
    }.get(phase, phase)


def _difference(rehearsed: int, formula: int | None) -> str:
    if not formula:
        return ""
    ratio = formula / rehearsed - 1
    much = "the same" if abs(ratio) < 0.0005 else _difference_words(ratio)
    return f" The formula said {much}."


def ago_text(seconds: float) -> str:
    return "just now" if seconds < 1 else f"{duration_text(int(seconds))} ago"


def past_error(runs: Sequence[RunSummary]) -> str:
    """How far off the prediction was in past runs: measured over predicted peak of tensors."""
    errors = [
        run.measured_peak_bytes / run.predicted_peak_bytes - 1
        for run in runs
        if run.measured_peak_bytes and run.predicted_peak_bytes
    ]
    if not errors:
        return "No run on this computer has been measured yet."
    newest = f"measured {_difference_words(errors[0])} than predicted in the newest run"
    if len(errors) == 1:
        return f"On this computer: {newest}."
    worst = max(errors, key=abs)
    return (
        f"On this computer: {newest}, {_difference_words(statistics.median(errors))} in the middle of {plural(len(errors), 'run')}, "
        f"{_difference_words(worst)} at worst."
    )


def _difference_words(ratio: float) -> str:
    return f"{percent_text(abs(ratio), 1)} {'more' if ratio >= 0 else 'less'}"


def _advice_sentence(text: str) -> str:
    """`the cheapest change: micro-batch 2 -> 1 saves 4.2 GiB` as a sentence."""
    return capital(re.sub(r"^(the cheapest change: .*?) saves ", r"\1, which saves ", text)) + "."


def arrow(text: str) -> str:
    return in_window(text.replace("->", "\u2192"))
