"""The Memory page's state: bars, a verdict in words, where every byte comes from, and what would save some."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.presenters.memory_sizes import Cost, Fitting, Size, Subject, hidden_costs, sizes
from app.presenters.words import GIB, bytes_text, duration_text, gib_text, joined, plural
from qlora_engine.config import all_knobs
from qlora_engine.memory import advise, gpus
from qlora_engine.memory.explain import MOVING, Bar, Comparison, Part
from qlora_engine.memory.moments import HOST_BASE_BYTES
from qlora_engine.runs.record import RunSummary

SHORT = {
    "quantized_weights": "4-bit weights",
    "quantization_constants": "constants",
    "unquantized_weights": "unquantized",
    "adapters": "adapters",
    "gradients": "gradients",
    "optimizer_resident": "optimizer",
    "optimizer_pageable": "optimizer, pageable",
    "activations": "activations",
    "step_temporary": "temporary",
    "allocator_rounding": "rounding",
    "device_context": "context",
}
CAPTIONS = {
    "double_quant": "With double quantization",
    "single_quant": "Without",
    "lora_16bit": "16-bit LoRA",
    "full_16bit": "Full 16-bit fine-tuning",
}
FAINT = ("lora_16bit", "full_16bit")
SHOWN_ADVICE = 5
RESERVE = "reserve"
SLIDE = "Move a slider and watch the bars."
MOMENTS = {
    "loading": "Loading the model",
    "evaluating": "Evaluating",
    "generating": "Generating a sample",
    "saving": "Saving a checkpoint",
    "resuming": "Resuming",
    "host_loading": "Host memory, loading",
}
TONES = {"fits": "good", "fits_low": "warning", "fits_paged": "warning", "too_large": "bad"}


@dataclass(frozen=True)
class Capacity:
    """What the chosen device has; `name` in words."""

    name: str
    total_bytes: int
    usable_bytes: int


@dataclass(frozen=True)
class BarState:
    name: str
    caption: str
    parts: tuple[tuple[str, str, int, str], ...]
    """(part, label, bytes, tooltip)"""
    total_text: str
    is_faint: bool
    is_chosen: bool


@dataclass(frozen=True)
class PartLine:
    """One part, for the chosen quantization and the other one, and what it opens to."""

    name: str
    title: str
    bytes_text: str
    other_text: str
    changed_by: str
    formula: str
    numbers: str
    source: str


@dataclass(frozen=True)
class TotalLine:
    title: str
    bytes_text: str
    other_text: str
    note: str


@dataclass(frozen=True)
class MomentLine:
    title: str
    bytes_text: str
    note: str
    tone: str = ""


@dataclass(frozen=True)
class AdviceLine:
    text: str
    saves_text: str
    path: str
    value: Any


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


@dataclass(frozen=True)
class MemoryState:
    bars: tuple[BarState, ...] = ()
    capacity: Capacity | None = None
    verdict: str = "Choose a model to see what a run will need."
    verdict_more: str = ""
    verdict_tone: str = ""
    remedy: Remedy | None = None
    saving: str = ""
    basis: str = ""
    mark: str = ""
    parts: tuple[PartLine, ...] = ()
    totals: tuple[TotalLine, ...] = ()
    chosen_caption: str = ""
    other_caption: str = ""
    moments: tuple[MomentLine, ...] = ()
    advice: tuple[AdviceLine, ...] = ()
    sizes: tuple[Size, ...] = ()
    sizes_heading: str = ""
    costs: tuple[Cost, ...] = ()
    past: str = ""
    gpu_names: tuple[str, ...] = ()
    gpu: str | None = None
    short_verdict: str = "n/a"


def memory_state(
    found: Comparison | None,
    capacity: Capacity | None,
    *,
    is_double: bool,
    gpu: str | None,
    length_note: str = "",
    subject: Subject | None = None,
    fitting: Fitting | None = None,
    rehearsal: RehearsalStatus | None = None,
    runs: Sequence[RunSummary] = (),
) -> MemoryState:
    names = tuple(known.name for known in gpus.known_gpus())
    if found is None:
        return MemoryState(capacity=capacity, gpu_names=names, gpu=gpu)
    chosen = found.bar("double_quant" if is_double else "single_quant")
    other = found.bar("single_quant" if is_double else "double_quant")
    verdict, more, tone = verdict_of(found, chosen, capacity, is_double=is_double)
    return MemoryState(
        bars=tuple(_bar(bar, bar.name == chosen.name) for bar in found.bars),
        capacity=capacity,
        verdict=verdict,
        verdict_more=more,
        verdict_tone=tone,
        remedy=remedy_of(found, capacity, fitting, is_double=is_double) if tone != "good" else None,
        saving=saving_of(found),
        basis=_basis(found, length_note),
        mark=mark_of(chosen, rehearsal or RehearsalStatus()),
        parts=tuple(_part_line(part, chosen, other) for part in chosen.parts),
        totals=_totals(found, chosen, other),
        chosen_caption=CAPTIONS[chosen.name],
        other_caption=CAPTIONS[other.name],
        moments=_moments(found, chosen, capacity),
        advice=tuple(
            AdviceLine(_capital(_arrow(a.change)), f"saves {bytes_text(a.saves_bytes)}", a.path, a.value)
            for a in found.estimate.advice[:SHOWN_ADVICE]
        ),
        sizes=sizes(subject, fitting),
        sizes_heading=SLIDE
        + (f" Below it, the largest that fits on {capacity.name}, all else as it is." if capacity else ""),
        costs=hidden_costs(subject, found),
        past=past_error(runs),
        gpu_names=names,
        gpu=gpu,
    )


def verdict_of(
    found: Comparison, bar: Bar, capacity: Capacity | None, *, is_double: bool
) -> tuple[str, str, str]:
    """A sentence, what more there is to say, and the tone."""
    reach = _range_text(found, bar)
    if capacity is None:
        return f"Needs about {gib_text(bar.device_likely)}.", reach, ""
    judged = advise.verdict(found.estimate, capacity.usable_bytes, double_quant=is_double)
    first, _, rest = _arrow(judged.text).partition("; ")
    more = [f"{_capital(rest)}."] if rest else []
    if judged.fits and bar.variant.device_high > capacity.usable_bytes:
        more.append("Closely: at worst it does not.")
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
    enough = [a for a in judged.advice if a.device_likely <= capacity.usable_bytes]
    steps = enough[:1] or (fitting.plan if fitting is not None and not judged.fits else None) or ()
    wanted = {step.path: step.value for step in steps}
    if not wanted:
        return None
    words = joined([_setting_text(path, value) for path, value in wanted.items()])
    return Remedy(f"Make it fit: {words}", tuple(wanted.items()))


def _setting_text(path: str, value: Any) -> str:
    """`micro-batch 1`, `gradient checkpointing on`."""
    knob = all_knobs()[path]
    shown = ("on" if value else "off") if isinstance(value, bool) else (knob.choices or {}).get(value, value)
    return f"{knob.label[:1].lower()}{knob.label[1:]} {shown:,}" if isinstance(shown, int) else f"{knob.label[:1].lower()}{knob.label[1:]} {shown}"  # fmt: skip


def _range_text(found: Comparison, bar: Bar) -> str:
    """Low, likely and high of what the device will show."""
    variant = bar.variant
    if found.estimate.settings["device"] == "cpu":
        return (
            f"The run's tensors take {gib_text(variant.device_likely)}; the program itself about "
            f"{HOST_BASE_BYTES / GIB:.1f} GiB more."
        )
    return (
        f"The GPU will show about {gib_text(variant.device_likely)}: at least {gib_text(variant.device_low)}, "
        f"at most {gib_text(variant.device_high)}."
    )


def short_verdict(bar: Bar, capacity: Capacity | None) -> str:
    if capacity is None:
        return f"about {gib_text(bar.device_likely)}"
    fits = "fits" if bar.device_likely <= capacity.usable_bytes else "does not fit"
    return f"{fits}: {bar.device_likely / GIB:.2f} of {capacity.usable_bytes / GIB:.1f} GiB"


def saving_of(found: Comparison) -> str:
    """What double quantization saves here, in bytes and bits per parameter: computed, not quoted."""
    double, single = found.bar("double_quant"), found.bar("single_quant")
    saved = single.part("quantization_constants").bytes_ - double.part("quantization_constants").bytes_
    quantized = found.estimate.quantized_parameters
    bits = f", {8 * saved / quantized:.3f} bits per quantized parameter" if quantized else ""
    return f"Double quantization saves {bytes_text(saved)} of constants{bits}."


def mark_of(chosen: Bar, rehearsal: RehearsalStatus) -> str:
    """Where the numbers are from: the formula, or a rehearsed step, with the operation at the peak."""
    variant = chosen.variant
    if variant.source == "rehearsal":
        ago = f" {ago_text(rehearsal.seconds_ago)}" if rehearsal.seconds_ago is not None else ""
        return f"Rehearsed{ago} on the real model class, without its weights. {_peak_text(variant.peak_operation)}{_difference(variant.peak_bytes, rehearsal.formula_bytes)}"
    percent = f", {100 * rehearsal.share:.0f} % done" if rehearsal.share is not None else ""
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
    percent = 100 * (formula / rehearsed - 1)
    much = "the same" if abs(percent) < 0.05 else f"{abs(percent):.1f} % {'more' if percent > 0 else 'less'}"
    return f" The formula said {much}."


def ago_text(seconds: float) -> str:
    return "just now" if seconds < 1 else f"{duration_text(int(seconds))} ago"


def past_error(runs: Sequence[RunSummary]) -> str:
    """How far off the prediction was in past runs: measured over predicted peak of tensors."""
    errors = [
        100 * (run.measured_peak_bytes / run.predicted_peak_bytes - 1)
        for run in runs
        if run.measured_peak_bytes and run.predicted_peak_bytes
    ]
    if not errors:
        return "No run on this computer has been measured yet."
    newest = f"measured {_percent(errors[0])} than predicted in the newest run"
    if len(errors) == 1:
        return f"On this computer: {newest}."
    worst = max(errors, key=abs)
    return (
        f"On this computer: {newest}, {_percent(statistics.median(errors))} in the middle of {plural(len(errors), 'run')}, "
        f"{_percent(worst)} at worst."
    )


def _percent(percent: float) -> str:
    return f"{abs(percent):.1f} % {'more' if percent >= 0 else 'less'}"


def _basis(found: Comparison, length_note: str) -> str:
    settings = found.estimate.settings
    return (
        f"For {settings['seq_len']:,} tokens{length_note} \u00d7 micro-batch {settings['micro_batch']}, "
        f"rank {settings['rank']}, {settings['optimizer']}, checkpointing {'on' if settings['checkpointing'] else 'off'}, "
        f"on {'an NVIDIA GPU' if settings['device'] == 'cuda' else 'the CPU in float32'}."
    )


def _bar(bar: Bar, is_chosen: bool) -> BarState:
    parts = tuple(
        (part.name, f"{SHORT.get(part.name, part.name)} {bytes_text(part.bytes_)}", part.bytes_, _tip(part))
        for part in bar.parts
        if part.bytes_
    )
    reserve = bar.device_likely - sum(part.bytes_ for part in bar.parts)
    if reserve > 0:
        tip = f"Reserve: {bytes_text(reserve)}\nlikely kept by the allocator and not in use at the peak"
        parts = (*parts, (RESERVE, f"reserve {bytes_text(reserve)}", reserve, tip))
    total = gib_text(bar.device_likely)
    return BarState(bar.name, CAPTIONS[bar.name], parts, total, bar.name in FAINT, is_chosen)


def _tip(part: Part) -> str:
    return f"{part.title}: {bytes_text(part.bytes_)}\n{part.formula}"


def _part_line(part: Part, chosen: Bar, other: Bar) -> PartLine:
    knobs = all_knobs()
    is_counted = chosen.variant.source == "rehearsal" and part.name in MOVING
    return PartLine(
        name=part.name,
        title=part.title,
        bytes_text=bytes_text(part.bytes_),
        other_text=bytes_text(other.part(part.name).bytes_),
        changed_by=joined([knobs[path].label for path in part.changed_by if path in knobs]),
        formula=part.formula,
        numbers=joined([f"{name} {value}" for name, value in part.numbers]),
        source="counted, storage by storage, in a rehearsed step" if is_counted else part.source,
    )


def _totals(found: Comparison, chosen: Bar, other: Bar) -> tuple[TotalLine, ...]:
    """The three totals, never mixed."""
    one, two = chosen.variant, other.variant
    tensors = TotalLine("Tensors at the peak", bytes_text(one.peak_bytes), bytes_text(two.peak_bytes), "what the allocator hands out")  # fmt: skip
    if found.estimate.settings["device"] == "cpu":
        return (tensors,)
    reach = f"{gib_text(one.device_low)} to {gib_text(one.device_high)}, with the device's context"
    return (
        tensors,
        TotalLine("Reserved", bytes_text(one.reserved_bytes), bytes_text(two.reserved_bytes), "what the allocator is likely to keep"),
        TotalLine("On the device", bytes_text(one.device_likely), bytes_text(two.device_likely), reach),
    )  # fmt: skip


def _moments(found: Comparison, chosen: Bar, capacity: Capacity | None) -> tuple[MomentLine, ...]:
    """The training step and the other peaks, as bytes of tensors; the computer's memory is a thing of its own."""
    variant = chosen.variant
    context = variant.parts["device_context"]
    lines = [MomentLine("Training step", bytes_text(variant.peak_bytes), "")]
    for name, title in MOMENTS.items():
        if name not in variant.moments:
            continue
        count = variant.moments[name]
        note, tone = "", ""
        if name != "host_loading" and capacity is not None and count + context > capacity.usable_bytes:
            note, tone = "does not fit", "bad"
        elif name != "host_loading" and count > variant.peak_bytes:
            note, tone = "higher", "warning"
        lines.append(MomentLine(title, bytes_text(count), note, tone))
    return tuple(lines)


def _arrow(text: str) -> str:
    return text.replace("->", "\u2192")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
