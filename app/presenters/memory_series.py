"""Turns memory samples into what the memory charts draw: bands, lines, predicted peaks, reasons. Without Qt.

Imports numpy through `series`: import it late.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from app.presenters.words import capital, gib_figure
from qlora_engine.memory.explain import Bar
from qlora_engine.memory.variants import Estimate
from qlora_engine.monitor import parts, trace
from qlora_engine.monitor.residency import ACCOUNTED, ESTIMATED
from qlora_engine.monitor.series import Curve, Ring, numbers

GIB = 1024**3
TITLES = {
    "others": "Other programs",
    "quantized_weights": "4-bit weights",
    "quantization_constants": "Constants",
    "unquantized_weights": "Unquantized weights",
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
    "used": "All programs",
    "device_context": "CUDA's context",
}
KEPT_WEIGHTS, GROUPED_EXPERTS = "kept_weights", "grouped_experts"
BAND_OF_PART = {
    "optimizer_resident": "optimizer",
    "optimizer_pageable": "optimizer",
    "step_temporary": "activations",
    "allocator_rounding": "activations",
    KEPT_WEIGHTS: "unquantized_weights",
    GROUPED_EXPERTS: "activations",
}
"""Where the estimate is finer than what a running engine can tell apart."""
POLLED = 60
"""Samples taken in at one look: a second of a reader that fell behind, without holding up the window."""
FRESH_SECONDS = 2.0
"""While the run told something this recently, the window's own samples are not needed."""
HOST_BANDS = tuple(name for name in parts.HOST_PARTS if name != "rest")
"""The estimate is of tensors: the interpreter and its libraries are told in words instead of drawn."""


class MemoryFeed:
    """All samples of this window's life in one ring: the machine's own, and during a run the engine's richer ones."""

    def __init__(self) -> None:
        self.ring: Ring | None = None
        self.latest: Mapping[str, Any] | None = None
        self.first = self.newest = math.nan
        self._tail: trace.TraceTail | None = None
        self._traced_at = -math.inf

    def add(self, sample: Mapping[str, Any]) -> None:
        """A sample of the run's engine."""
        gpus = len(sample.get("gpus") or ())
        values = numbers(sample)
        if parts.gpu_shown(sample) is None:
            values.pop("band.rest", None)
        if self.ring is None:
            self.ring = Ring.for_gpus(gpus)
        elif not self.ring.has_room_for(values):
            self.ring = self.ring.with_room_for(values)
        self._append(sample, values)

    def add_idle(self, sample: Mapping[str, Any]) -> None:
        """A sample of the window itself, passed over while the run tells its own."""
        if float(sample["time"]) < self._traced_at + FRESH_SECONDS:
            return
        told = {**sample, "host": _without_process(sample.get("host"))}
        self.add(told)

    def follow(self, tail: trace.TraceTail, samples: Iterable[Mapping[str, Any]] = ()) -> None:
        """From now on take what a run adds to its trace, after `samples`, which were read already."""
        self._tail = tail
        self._take(samples)

    def poll(self) -> int:
        """Take in new samples of the run, a limited number at a time; how many there were."""
        return self._take(islice(self._tail.new(), POLLED)) if self._tail is not None else 0

    def leave(self) -> None:
        """The run has ended: its trace grows no more."""
        self._tail, self._traced_at = None, -math.inf

    def _take(self, samples: Iterable[Mapping[str, Any]]) -> int:
        count = 0
        for sample in samples:
            self.add(sample)
            self._traced_at = float(sample["time"])
            count += 1
        return count

    def _append(self, sample: Mapping[str, Any], values: Mapping[str, float | None]) -> None:
        assert self.ring is not None
        self.ring.append(float(sample["time"]), values)
        self.latest, self.first, self.newest = sample, self.ring.oldest, float(sample["time"])


def tail_since(path: Path, unix: float) -> tuple[trace.TraceTail, list[dict[str, Any]]]:
    """A trace from `unix` on: what it holds so far, and the reader of what follows. A resumed run's trace is long, so
    this belongs into the background."""
    tail = trace.TraceTail(path)
    return tail, [sample for sample in tail.new() if sample["time"] >= unix]


def kept_trace(path: Path) -> MemoryFeed:
    """The whole trace of a run, drawn as it was seen. Takes seconds for a day: belongs into the background."""
    feed = MemoryFeed()
    for sample in trace.TraceTail(path).new():
        feed.add(sample)
    return feed


# ---------------------------------------------------------------- the stacked charts


@dataclass(frozen=True)
class Band:
    """One part: its upper edge in GiB over time, its own newest thickness in bytes, and how that is known: measured,
    accounted or estimated."""

    name: str
    title: str
    curve: Curve
    latest_bytes: float | None
    kind: str = parts.MEASURED


@dataclass(frozen=True)
class Prediction:
    """The peak of the next or present run: `tensor_bytes` is what torch allocates, `device_bytes` with context, `parts`
    what it is made of, by the names of the bands of a run on the CPU."""

    tensor_bytes: int | None = None
    device_bytes: int | None = None
    parts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_next(cls, estimate: Estimate, bar: Bar, besides: int) -> Prediction:
        """Of a run that has not begun; `besides` is 0 or Estimate.besides_bytes."""
        variant, kept = bar.variant, estimate.kept_weights_bytes if besides else 0
        more = {KEPT_WEIGHTS: kept, GROUPED_EXPERTS: besides - kept}
        found = predicted_parts({**variant.parts, **more})
        return cls(variant.peak_bytes + besides, variant.device_likely + besides, found)

    @classmethod
    def of_plan(cls, predicted: int | None, estimate: Mapping[str, Any] | None) -> Prediction:
        """What a run was begun with: of its estimate the side (one quantization or two) that it was planned by, and
        what it took besides: weights kept dequantized, experts dequantized together."""
        estimated = estimate or {}
        kept, grouped = (int(estimated.get(f"{name}_bytes") or 0) for name in (KEPT_WEIGHTS, GROUPED_EXPERTS))
        for side in (estimated.get(name) or {} for name in ("double_quant", "single_quant")):
            besides = (predicted or 0) - int(side.get("peak_bytes") or 0)
            if side and besides in (0, kept, grouped, kept + grouped):
                device = (side.get("device_bytes") or {}).get("likely")
                of_groups = grouped if besides in (grouped, kept + grouped) else 0
                more = {KEPT_WEIGHTS: besides - of_groups, GROUPED_EXPERTS: of_groups}
                found = predicted_parts({**side.get("parts", {}), **more})
                return cls(predicted, device and device + besides, found)
        return cls(predicted)


def predicted_parts(estimated: Mapping[str, int]) -> dict[str, int]:
    """The estimate's parts by the bands' names, without what is nothing."""
    found: dict[str, int] = {}
    for name, amount in estimated.items():
        band = BAND_OF_PART.get(name, name)
        found[band] = found.get(band, 0) + int(amount)
    return {name: amount for name, amount in found.items() if amount}


@dataclass(frozen=True)
class Picture:
    """`bands` from the bottom up; `level_bytes` is where the predicted peak's dashed line is drawn, named `level_title`, and
    `predicted` what the run's part of it is made of, in bytes: beside the bands of the same name, and listed where
    `lists_parts`."""

    title: str
    bands: tuple[Band, ...]
    level_bytes: float | None = None
    note: str = ""
    predicted: Mapping[str, int] = field(default_factory=dict)
    lists_parts: bool = False
    level_title: str = "Predicted peak"


def memory_picture(
    feed: MemoryFeed, window: tuple[float, float], buckets: int, predicted: Prediction, *, is_live: bool
) -> Picture:
    """The GPU's memory by part; on a CPU run the engine's; with neither, what the whole computer uses."""
    ring, latest = feed.ring, feed.latest
    if ring is None or latest is None:
        return Picture("Memory, GiB", ())
    gpu = parts.gpu_shown(latest)
    if gpu is not None:
        others = gpu.get("others_bytes") or 0
        level = predicted.device_bytes + others if predicted.device_bytes else None
        bands = _bands(ring, parts.DEVICE_PARTS, window, buckets, latest)
        return Picture(
            f"GPU {gpu.get('index', 0)} memory, GiB", bands, level, _unknown(gpu, "used_bytes"), predicted.parts, not is_live
        )  # fmt: skip
    bands = _bands(ring, HOST_BANDS, window, buckets, latest)
    if bands or is_live:
        return Picture(
            "Memory of the engine, GiB", bands, predicted.tensor_bytes, _rest(latest), predicted.parts
        )
    curve = in_gib(ring.curve("host.used_bytes", *window, buckets))
    used = _host_used(latest)
    reached = used + predicted.tensor_bytes if predicted.tensor_bytes and used is not None else None
    band = Band("used", TITLES["used"], curve, used)
    return Picture(
        "Memory of this computer, GiB", (band,) if len(curve.times) else (), reached, "", predicted.parts, lists_parts=True,
        level_title="With the next run",
    )  # fmt: skip


def paged_picture(feed: MemoryFeed, window: tuple[float, float], buckets: int) -> Picture:
    """Managed optimizer memory: on the GPU, on the CPU; no bands while nothing is managed."""
    ring, latest = feed.ring, feed.latest
    if ring is None or latest is None:
        return Picture("", ())
    whole = in_gib(ring.curve("paged.managed_bytes", *window, buckets))
    if not whole.values.size or not _most(whole) > 0:
        return Picture("", ())
    paged = latest.get("paged") or {}
    title = "Paged optimizer memory, GiB"
    on_gpu = in_gib(ring.curve("paged.on_gpu_bytes", *window, buckets))
    kind = ESTIMATED if paged.get("residency_kind") == ESTIMATED else ACCOUNTED
    if not on_gpu.values.size or math.isnan(_most(on_gpu)):
        why = paged.get("residency_reason")
        note = f"Where it is: n/a ({why})" if why else ""
        band = Band("managed", TITLES["managed"], whole, paged.get("managed_bytes"), ACCOUNTED)
        return Picture(title, (band,), None, note)
    bands = (
        Band("on_gpu", TITLES["on_gpu"], on_gpu, paged.get("on_gpu_bytes"), kind),
        Band("on_cpu", TITLES["on_cpu"], whole, paged.get("on_cpu_bytes"), kind),
    )
    return Picture(title, bands, None, f"{capital(kind)}: {paged.get('residency_reason') or ''}".rstrip(": "))


def in_gib(curve: Curve) -> Curve:
    return Curve(curve.times, (curve.values / GIB).astype(np.float32))


def _bands(
    ring: Ring,
    names: tuple[str, ...],
    window: tuple[float, float],
    buckets: int,
    latest: Mapping[str, Any],
) -> tuple[Band, ...]:
    """The bands of `names` that are thicker than nothing somewhere in the window."""
    now = {part.name: part for part in parts.run_parts(latest)}
    found: list[Band] = []
    below: Curve | None = None
    for name in names:
        curve = in_gib(ring.curve(f"band.{name}", *window, buckets))
        if not curve.values.size or math.isnan(_most(curve)):
            continue
        if _is_thick(curve, below):
            part = now.get(name, parts.Part(name, 0, parts.MEASURED))
            found.append(Band(name, TITLES[name], curve, float(part.bytes_), part.kind))
        below = curve
    return tuple(found)


def _is_thick(curve: Curve, below: Curve | None) -> bool:
    """Edges that are the same everywhere are picked at the same samples, so they compare equal."""
    if below is None:
        return _most(curve) > 0
    if len(curve.values) != len(below.values):
        return True
    return bool((curve.values != below.values)[~(curve.values != curve.values)].any())


def _most(curve: Curve) -> float:
    known = curve.values[curve.values == curve.values]
    return float(known.max()) if known.size else math.nan


def _amounts(sample: Mapping[str, Any]) -> dict[str, float]:
    return {part.name: float(part.bytes_) for part in parts.run_parts(sample)}


def _rest(sample: Mapping[str, Any]) -> str:
    """What a CPU run's processes use beyond the parts."""
    rest = _amounts(sample).get("rest")
    if not rest or not sample.get("parts"):
        return ""
    return f"+ {gib_figure(rest)} libraries and rest, not in the estimate"


def _unknown(fields: Mapping[str, Any], name: str) -> str:
    why = (fields.get("unavailable") or {}).get(name)
    return f"n/a: {why}" if why else ""


def _host_used(sample: Mapping[str, Any]) -> float | None:
    host = sample.get("host") or {}
    total, free = host.get("total_bytes"), host.get("available_bytes")
    return None if total is None or free is None else float(total - free)


def _without_process(host: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The window's own process is nobody's question."""
    return {k: v for k, v in host.items() if not k.startswith("process_")} if host else None
