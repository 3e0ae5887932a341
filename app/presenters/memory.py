"""The Memory page's state: bars, a verdict in words, where every byte comes from, and what would save some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.presenters.memory_sizes import Cost, Fitting, Size, Subject, hidden_costs, sizes
from app.presenters.memory_words import (
    Capacity,
    RehearsalStatus,
    Remedy,
    arrow,
    mark_of,
    past_error,
    remedy_of,
    saving_of,
    verdict_of,
)
from app.presenters.typed import value_text
from app.presenters.words import bytes_text, capital, count_text, gib_text, joined
from qlora_engine.config import all_knobs
from qlora_engine.memory import gpus
from qlora_engine.memory.explain import MOVING, Bar, Comparison, Part
from qlora_engine.runs.summary import RunSummary

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
CAPTIONS_CPU = {
    **CAPTIONS,
    "lora_16bit": "LoRA without 4 bits, in fp32",
    "full_16bit": "Full fine-tuning, in fp32",
}
"""The CPU computes in fp32, and keeps there what is not quantized."""
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


@dataclass(frozen=True)
class Segment:
    """One part of a bar: `name` chooses the colour, `text` is its label, `tip` explains it."""

    name: str
    text: str
    bytes_: int
    tip: str = ""


@dataclass(frozen=True)
class BarState:
    """One stacked bar: its caption, its parts and its total in words."""

    name: str
    caption: str
    segments: tuple[Segment, ...]
    total_text: str
    is_faint: bool = False
    is_chosen: bool = False


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


def memory_state(
    found: Comparison | None,
    capacity: Capacity | None,
    *,
    is_double: bool,
    gpu: str | None,
    is_assumed: bool = False,
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
        bars=tuple(_bar(bar, _caption(found, bar), bar.name == chosen.name) for bar in found.bars),
        capacity=capacity,
        verdict=f"Before data is read: {verdict[:1].lower()}{verdict[1:]}" if is_assumed else verdict,
        verdict_more=more,
        verdict_tone=tone,
        remedy=remedy_of(found, capacity, fitting, is_double=is_double) if tone != "good" else None,
        saving=saving_of(found),
        basis=_basis(found, is_assumed=is_assumed),
        mark=mark_of(chosen, rehearsal or RehearsalStatus()),
        parts=tuple(_part_line(part, chosen, other) for part in chosen.parts),
        totals=_totals(found, chosen, other),
        chosen_caption=_caption(found, chosen),
        other_caption=_caption(found, other),
        moments=_moments(found, chosen, capacity),
        advice=tuple(
            AdviceLine(capital(arrow(a.change)), f"saves {bytes_text(a.saves_bytes)}", a.path, a.value)
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


def _basis(found: Comparison, *, is_assumed: bool) -> str:
    settings = found.estimate.settings
    choices = all_knobs()["training.optimizer"].choices or {}
    assumed = " (assumed until the data is checked)" if is_assumed else ""
    return (
        f"For {count_text(settings['seq_len'])} tokens{assumed} \u00d7 micro-batch {count_text(settings['micro_batch'])}, "
        f"rank {count_text(settings['rank'])}, {choices[settings['optimizer']]}, checkpointing {'on' if settings['checkpointing'] else 'off'}, "
        f"on {'an NVIDIA GPU' if settings['device'] == 'cuda' else 'the CPU in float32'}."
    )


def _caption(found: Comparison, bar: Bar) -> str:
    return (CAPTIONS_CPU if found.estimate.settings["device"] == "cpu" else CAPTIONS)[bar.name]


def _bar(bar: Bar, caption: str, is_chosen: bool) -> BarState:
    parts = tuple(
        Segment(
            part.name, f"{SHORT.get(part.name, part.name)} {bytes_text(part.bytes_)}", part.bytes_, _tip(part)
        )
        for part in bar.parts
        if part.bytes_
    )
    reserve = bar.device_likely - sum(part.bytes_ for part in bar.parts)
    if reserve > 0:
        tip = f"Reserve: {bytes_text(reserve)}\nlikely kept by the allocator and not in use at the peak"
        parts = (*parts, Segment(RESERVE, f"reserve {bytes_text(reserve)}", reserve, tip))
    total = gib_text(bar.device_likely)
    return BarState(bar.name, caption, parts, total, bar.name in FAINT, is_chosen)


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
        numbers=joined([f"{name} {value_text(value)}" for name, value in part.numbers]),
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
