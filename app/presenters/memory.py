"""The Memory page's state: bars, a verdict in words, where every byte comes from, and what would save some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.presenters.words import GIB, bytes_text, gib_text
from qlora_engine.memory import gpus
from qlora_engine.memory.explain import Bar, Comparison, Part

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
    """One row of the table of parts, for the chosen quantization and the other one."""

    name: str
    title: str
    bytes_text: str
    other_text: str
    formula: str
    numbers: str
    source: str


@dataclass(frozen=True)
class AdviceLine:
    text: str
    saves_text: str
    path: str
    value: Any


@dataclass(frozen=True)
class MemoryState:
    bars: tuple[BarState, ...]
    capacity: Capacity | None
    verdict: str
    verdict_tone: str
    saving: str
    basis: str
    parts: tuple[PartLine, ...]
    other_caption: str
    advice: tuple[AdviceLine, ...]
    gpu_names: tuple[str, ...]
    gpu: str | None
    short_verdict: str = "n/a"


def memory_state(
    found: Comparison | None,
    capacity: Capacity | None,
    *,
    is_double: bool,
    gpu: str | None,
    length_note: str = "",
) -> MemoryState:
    names = tuple(known.name for known in gpus.known_gpus())
    if found is None:
        empty = "Choose a model to see what a run will need."
        return MemoryState((), capacity, empty, "", "", "", (), "", (), names, gpu)
    chosen = found.bar("double_quant" if is_double else "single_quant")
    other = found.bar("single_quant" if is_double else "double_quant")
    verdict, tone = verdict_of(chosen, capacity, found)
    return MemoryState(
        bars=tuple(_bar(bar, bar.name == chosen.name) for bar in found.bars),
        capacity=capacity,
        verdict=verdict,
        verdict_tone=tone,
        saving=saving_of(found),
        basis=_basis(found, chosen, length_note),
        parts=tuple(_part_line(part, other) for part in chosen.parts),
        other_caption=CAPTIONS[other.name],
        advice=tuple(
            AdviceLine(_capital(a.change), f"saves {bytes_text(a.saves_bytes)}", a.path, a.value)
            for a in found.estimate.advice[:SHOWN_ADVICE]
        ),
        gpu_names=names,
        gpu=gpu,
        short_verdict=short_verdict(chosen, capacity),
    )  # fmt: skip


def verdict_of(bar: Bar, capacity: Capacity | None, found: Comparison) -> tuple[str, str]:
    """A sentence with numbers, and its tone."""
    need = bar.device_likely
    if capacity is None:
        return f"Needs about {gib_text(need)}.", ""
    spare = capacity.usable_bytes - need
    place = f"{capacity.usable_bytes / GIB:.1f} GiB usable on {capacity.name}"
    if bar.variant.device_high <= capacity.usable_bytes:
        return f"Fits: {gib_text(need)} of {place}; {gib_text(spare)} to spare.", "good"
    if spare >= 0:
        high = gib_text(bar.variant.device_high)
        return f"Fits closely: {gib_text(need)} of {place}, {high} at worst.", "warning"
    cheapest = next((a for a in found.estimate.advice if a.saves_bytes >= -spare), None)
    advice = (
        f" Cheapest change: {cheapest.change}, saves {bytes_text(cheapest.saves_bytes)}." if cheapest else ""
    )
    return f"Does not fit: {gib_text(need)} of {place}.{advice}", "bad"


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


def _basis(found: Comparison, chosen: Bar, length_note: str) -> str:
    settings = found.estimate.settings
    source = "rehearsed" if chosen.variant.source == "rehearsal" else "computed"
    return (
        f"{source.capitalize()} for {settings['seq_len']:,} tokens{length_note} \u00d7 micro-batch {settings['micro_batch']}, "
        f"rank {settings['rank']}, {settings['optimizer']}, checkpointing {'on' if settings['checkpointing'] else 'off'}, "
        f"on {'an NVIDIA GPU' if settings['device'] == 'cuda' else 'the CPU in float32'}."
    )


def _bar(bar: Bar, is_chosen: bool) -> BarState:
    parts = tuple(
        (part.name, f"{SHORT.get(part.name, part.name)} {_short_bytes(part.bytes_)}", part.bytes_, _tip(part))
        for part in bar.parts
        if part.bytes_
    )
    total = gib_text(bar.device_likely)
    return BarState(bar.name, CAPTIONS[bar.name], parts, total, bar.name in FAINT, is_chosen)


def _short_bytes(count: int) -> str:
    """GiB without the unit where it would read as something; MiB named where it would read as 0.0."""
    return f"{count / GIB:.2f}" if count >= GIB / 10 else bytes_text(count)


def _tip(part: Part) -> str:
    return f"{part.title}: {bytes_text(part.bytes_)}\n{part.formula}"


def _part_line(part: Part, other: Bar) -> PartLine:
    numbers = ", ".join(f"{name} {value}" for name, value in part.numbers)
    same = other.part(part.name).bytes_
    return PartLine(
        part.name, part.title, bytes_text(part.bytes_), bytes_text(same), part.formula, numbers, part.source
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
