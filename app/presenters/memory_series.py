"""Turns memory samples into what the memory charts draw: bands, lines, predicted peaks, reasons. Without Qt.

Imports numpy through `series`: import it late.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from qlora_engine.monitor import parts, trace
from qlora_engine.monitor.series import Curve, Ring, numbers

GIB = 1024**3
MIB = 1024**2
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
}
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
        self._gpus = 0

    def add(self, sample: Mapping[str, Any]) -> None:
        """A sample of the run's engine."""
        gpus = len(sample.get("gpus") or ())
        if self.ring is None or gpus > max(2, self._gpus):
            self.ring, self._gpus, self.first = Ring.for_gpus(gpus), gpus, float(sample["time"])
        values = numbers(sample)
        if parts.gpu_shown(sample) is None:
            values.pop("band.rest", None)
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
        self.latest, self.newest = sample, float(sample["time"])


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
    """One part: its upper edge in GiB over time, and its own newest thickness in bytes."""

    name: str
    title: str
    curve: Curve
    latest_bytes: float | None


@dataclass(frozen=True)
class Prediction:
    """The peak of the next or present run: `tensor_bytes` is what torch allocates, `device_bytes` with context."""

    tensor_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True)
class Picture:
    """`bands` from the bottom up; `level_bytes` is where the predicted peak's dashed line is drawn."""

    title: str
    bands: tuple[Band, ...]
    level_bytes: float | None = None
    note: str = ""


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
        bands = _bands(ring, parts.DEVICE_PARTS, window, buckets, _amounts(latest))
        return Picture(f"GPU {gpu.get('index', 0)} memory, GiB", bands, level, _unknown(gpu, "used_bytes"))
    bands = _bands(ring, HOST_BANDS, window, buckets, _amounts(latest))
    if bands or is_live:
        return Picture("Memory of the engine, GiB", bands, predicted.tensor_bytes, _rest(latest))
    curve = in_gib(ring.curve("host.used_bytes", *window, buckets))
    used = _host_used(latest)
    reached = used + predicted.tensor_bytes if predicted.tensor_bytes and used is not None else None
    band = Band("used", TITLES["used"], curve, used)
    return Picture("Memory of this computer, GiB", (band,) if len(curve.times) else (), reached)


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
    kind = "estimated" if paged.get("residency_kind") == "estimated" else "accounted"
    if not on_gpu.values.size or math.isnan(_most(on_gpu)):
        why = paged.get("residency_reason")
        note = f"where it is: n/a ({why})" if why else ""
        return Picture(title, (Band("managed", TITLES["managed"], whole, paged.get("managed_bytes")),), None, note)  # fmt: skip
    bands = (
        Band("on_gpu", TITLES["on_gpu"], on_gpu, paged.get("on_gpu_bytes")),
        Band("on_cpu", TITLES["on_cpu"], whole, paged.get("on_cpu_bytes")),
    )
    return Picture(title, bands, None, f"{kind}: {paged.get('residency_reason') or ''}".rstrip(": "))


def in_gib(curve: Curve) -> Curve:
    return Curve(curve.times, (curve.values / GIB).astype(np.float32))


def _bands(
    ring: Ring,
    names: tuple[str, ...],
    window: tuple[float, float],
    buckets: int,
    amounts: Mapping[str, float],
) -> tuple[Band, ...]:
    """The bands of `names` that are thicker than nothing somewhere in the window."""
    found: list[Band] = []
    below: Curve | None = None
    for name in names:
        curve = in_gib(ring.curve(f"band.{name}", *window, buckets))
        if not curve.values.size or math.isnan(_most(curve)):
            continue
        if _is_thick(curve, below):
            found.append(Band(name, TITLES[name], curve, amounts.get(name, 0.0)))
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
    return f"+ {rest / GIB:.2f} libraries and rest, not in the estimate"


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


# ---------------------------------------------------------------- the small charts


@dataclass(frozen=True)
class SmallLine:
    """One line of a small chart: a series of the ring, what it is multiplied with, and how it is called."""

    series: str
    title: str
    colour: str
    factor: float = 1.0


@dataclass(frozen=True)
class SmallChart:
    """`unit` of all its lines; `top` is the least upper end of its scale."""

    name: str
    title: str
    unit: str
    lines: tuple[SmallLine, ...]
    top: float = 0.0
    digits: int = 0


@dataclass(frozen=True)
class SmallReading:
    """The newest values in words, and the reason where there is none."""

    text: str
    tip: str = ""


HOST_CHARTS = (
    SmallChart(
        "host", "Host memory", "GiB", (SmallLine("host.used_bytes", "used", "#0072B2", 1 / GIB),), digits=2
    ),
    SmallChart("swap", "Swap", "GiB", (SmallLine("host.swap_used_bytes", "used", "#E69F00", 1 / GIB),), 0.1, 2),
    SmallChart(
        "cores", "Processor, engine", "cores", (SmallLine("host.process_cpu_ratio", "busy", "#009E73"),), 1.0, 1
    ),
)  # fmt: skip
PAGES_CHART = SmallChart(
    "pages", "Pages moving", "MiB/s",
    (
        SmallLine("paged.to_cpu_bytes_per_second", "to the CPU", "#E69F00", 1 / MIB),
        SmallLine("paged.to_gpu_bytes_per_second", "to the GPU", "#D55E00", 1 / MIB),
    ),
    1.0,
)  # fmt: skip


def gpu_key(gpu: Mapping[str, Any]) -> str:
    """The ring's name of a GPU or MIG slice."""
    mig = gpu.get("mig_index")
    return f"gpu{gpu['index']}" if mig is None else f"gpu{gpu['index']}.{mig}"


def gpu_charts(gpu: Mapping[str, Any], *, has_memory: bool) -> tuple[SmallChart, ...]:
    """A row of small charts for one GPU; its memory too where there are several."""
    key = gpu_key(gpu)
    name = f"GPU {key.removeprefix('gpu')}"
    memory = SmallChart(
        f"{key}.memory", f"{name} memory", "GiB", (SmallLine(f"{key}.used_bytes", "used", "#0072B2", 1 / GIB),), digits=2
    )  # fmt: skip
    found = (
        SmallChart(f"{key}.use", f"{name} use", "%", (SmallLine(f"{key}.utilisation_ratio", "busy", "#009E73", 100),), 100),
        SmallChart(f"{key}.heat", "Temperature", "\u00b0C", (SmallLine(f"{key}.temperature_celsius", "chip", "#D55E00"),), 60),
        SmallChart(f"{key}.power", "Power", "W", (SmallLine(f"{key}.power_watts", "drawn", "#E69F00"),), 50),
        SmallChart(
            f"{key}.pcie", "PCIe", "MiB/s",
            (
                SmallLine(f"{key}.pcie_received_bytes_per_second", "in", "#56B4E9", 1 / MIB),
                SmallLine(f"{key}.pcie_sent_bytes_per_second", "out", "#CC79A7", 1 / MIB),
            ),
            1.0,
        ),
    )  # fmt: skip
    return (memory, *found) if has_memory else found


def small_reading(chart: SmallChart, sample: Mapping[str, Any] | None) -> SmallReading:
    """The newest values: `62 °C`, or `n/a` with the reason."""
    if sample is None:
        return SmallReading("n/a", "nothing was measured yet")
    values = numbers(sample)
    known = [(line, values.get(line.series)) for line in chart.lines]
    texts = [
        f"{line.title + ' ' if len(chart.lines) > 1 else ''}{value * line.factor:,.{chart.digits}f}"
        for line, value in known
        if value is not None
    ]
    block = _block(sample, chart.lines[0].series)
    if not texts:
        return SmallReading("n/a", _reason(sample, block, chart))
    return SmallReading(f"{', '.join(texts)} {chart.unit}{_limit(chart, block)}", _more(chart, block))


def _block(sample: Mapping[str, Any], series: str) -> Mapping[str, Any]:
    head = series.rsplit(".", 1)[0]
    if head in ("host", "paged"):
        return sample.get(head) or {}
    return next((gpu for gpu in sample.get("gpus") or () if gpu_key(gpu) == head), {})


def _reason(sample: Mapping[str, Any], block: Mapping[str, Any], chart: SmallChart) -> str:
    field = chart.lines[0].series.rsplit(".", 1)[1]
    if field.startswith("process_") and field not in block:
        return "no engine is running"
    why = (block.get("unavailable") or {}).get(field) or sample.get("gpu_problem")
    return str(why or "it is not told")


def _limit(chart: SmallChart, block: Mapping[str, Any]) -> str:
    """What it is measured against, where that is known."""
    if chart.name.endswith(".power") and block.get("power_limit_watts"):
        return f" of {block['power_limit_watts']:.0f}"
    if chart.name == "host" and block.get("total_bytes"):
        return f" of {block['total_bytes'] / GIB:.1f}"
    if chart.name == "swap" and block.get("swap_total_bytes") is not None:
        return f" of {block['swap_total_bytes'] / GIB:.1f}"
    if chart.name.endswith(".memory") and block.get("total_bytes"):
        return f" of {block['total_bytes'] / GIB:.1f}"
    return ""


def _more(chart: SmallChart, block: Mapping[str, Any]) -> str:
    """Clocks, throttling, the encoder: told in the tooltip of what they belong to."""
    if not chart.name.startswith("gpu"):
        return ""
    no = block.get("unavailable") or {}
    if chart.name.endswith(".use"):
        encoder = block.get("encoder_ratio")
        said = (
            f"{100 * encoder:.0f} %" if encoder is not None else f"n/a: {no.get('encoder_ratio', 'not told')}"
        )
        return f"Video encoder: {said}"
    if not chart.name.endswith((".heat", ".power")):
        return ""
    clock, memory = block.get("sm_clock_mhz"), block.get("memory_clock_mhz")
    reasons = block.get("throttle_reasons")
    held = ", ".join(reasons) if reasons else "not throttled"
    if reasons is None:
        held = f"throttling n/a: {no.get('throttle_reasons', 'not told')}"
    clocks = f"clock {clock} MHz, memory {memory} MHz" if clock is not None else f"clocks n/a: {no.get('sm_clock_mhz', 'not told')}"  # fmt: skip
    return f"{clocks}\n{held}"
