"""Turns memory samples into the stacked curves of the memory chart: the GPU's, the run's own, or the host's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_engine.monitor import parts as split

TITLES = {
    "others": "Other programs",
    "quantized_weights": "4-bit weights",
    "quantization_constants": "Constants",
    "unquantized_weights": "Unquantized weights",
    "weights": "Weights",
    "adapters": "Adapters",
    "gradients": "Gradients",
    "optimizer": "Optimizer",
    "activations": "Activations, temporary",
    "allocated": "Allocated by the run",
    "reserved_free": "Reserved, free",
    "in_use": "In use",
    "context_and_rest": "Context and rest",
    "managed": "Managed optimizer state",
    "on_gpu": "On the GPU",
    "on_cpu": "On the CPU",
    "driver": "Driver",
    "rest": "Rest",
}

ORDER = tuple(TITLES)
"""From the bottom up, so that a part that appears later does not move the others."""


@dataclass(frozen=True)
class Stack:
    """`times` in seconds since the first sample; `parts` from the bottom up, bytes at each time."""

    title: str
    times: tuple[float, ...]
    parts: Mapping[str, tuple[float, ...]]
    titles: Mapping[str, str]


def memory_stack(samples: Sequence[Mapping[str, Any]], *, is_run: bool) -> Stack:
    """The device's memory over time: by part during a run, and of the whole host when nothing runs on a CPU."""
    if not samples:
        return Stack("Memory", (), {}, TITLES)
    has_gpu = bool(samples[-1].get("gpus"))
    title = "GPU memory" if has_gpu else "Memory of the engine" if is_run else "Memory of this computer"
    found = [_parts(sample, has_gpu, is_run) for sample in samples]
    return Stack(f"{title}, GiB", _times(samples), _aligned(found), TITLES)


def paged_stack(samples: Sequence[Mapping[str, Any]]) -> Stack:
    """Managed optimizer memory over time; no parts when nothing is paged."""
    found = [tuple((part.name, float(part.bytes_)) for part in split.paged_parts(s)) for s in samples]
    return Stack("Paged optimizer memory, GiB", _times(samples), _aligned(found), TITLES)


def _parts(sample: Mapping[str, Any], has_gpu: bool, is_run: bool) -> tuple[tuple[str, float], ...]:
    if has_gpu:
        gpu = next(iter(sample.get("gpus") or ()), None)
        return tuple((p.name, float(p.bytes_)) for p in split.device_parts(sample, gpu)) if gpu else ()
    if is_run:
        # The estimate is of tensors; the interpreter and its libraries are told in words below the chart.
        return tuple((p.name, float(p.bytes_)) for p in split.host_parts(sample) if p.name != "rest")
    host = sample["host"]
    return (("in_use", float(host["total_bytes"] - host["available_bytes"])),)


def _times(samples: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    return tuple(sample["time"] - samples[0]["time"] for sample in samples) if samples else ()


def _aligned(found: Sequence[tuple[tuple[str, float], ...]]) -> dict[str, tuple[float, ...]]:
    """Every part at every time; a part that a sample does not have is 0 there."""
    order: dict[str, None] = {}
    for parts in found:
        for name, _ in parts:
            order.setdefault(name)
    tables = [dict(parts) for parts in found]
    names = sorted(order, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return {name: tuple(table.get(name, 0.0) for table in tables) for name in names}
