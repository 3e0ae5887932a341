"""Splits a sample into the parts a chart stacks, each with its kind: measured, accounted or estimated. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_engine.monitor.residency import ACCOUNTED, ESTIMATED, gpu_of_run

MEASURED = "measured"
DEVICE_PARTS = (
    "others", "in_use", "allocated", "reserved_free", "context_and_rest", "managed", "driver", "rest",
)  # fmt: skip
"""From the bottom up. `in_use` stands for the run's own three where torch's figures are not told; `driver` is what
no process accounts for, and `rest` the same where the driver does not tell memory by process."""
HOST_PARTS = (
    "quantized_weights", "quantization_constants", "unquantized_weights", "adapters", "gradients", "optimizer",
    "activations", "rest",
)  # fmt: skip
"""The estimate's names where it has them; `activations` are with the temporaries of a step, at their peak."""


@dataclass(frozen=True)
class Part:
    """One band of the chart. `name` is one of `DEVICE_PARTS`, `HOST_PARTS`, or "on_gpu", "on_cpu", "managed"."""

    name: str
    bytes_: int
    kind: str


def device_parts(sample: Mapping[str, Any], gpu: Mapping[str, Any]) -> tuple[Part, ...]:
    """What `gpu["used_bytes"]` is made of, from the bottom up; the parts add up to it. Empty when it is unknown.

    The process figures are up to 5 s older than the total, so `rest` takes up what moved since.
    """
    used = gpu.get("used_bytes")
    if used is None:
        return ()
    run = gpu_of_run(sample)
    is_run = run is not None and run is gpu
    torch = (sample.get("torch") or {}) if is_run else {}
    paged = (sample.get("paged") or {}) if is_run else {}
    parts: list[Part] = []
    others, own = gpu.get("others_bytes"), gpu.get("own_bytes")
    if others:
        parts.append(Part("others", others, MEASURED))
    allocated, reserved = torch.get("allocated_bytes"), torch.get("reserved_bytes")
    if allocated is not None and reserved is not None:
        parts += [
            Part("allocated", allocated, MEASURED),
            Part("reserved_free", reserved - allocated, MEASURED),
        ]
        if own is not None and own > reserved:
            parts.append(Part("context_and_rest", own - reserved, MEASURED))
    elif own:
        parts.append(Part("in_use", own, MEASURED))
    if paged.get("on_gpu_bytes"):
        kind = ESTIMATED if paged.get("residency_kind") == ESTIMATED else ACCOUNTED
        parts.append(Part("managed", paged["on_gpu_bytes"], kind))
    is_listed = bool(own) or (own is not None and not reserved)
    return _closed(parts, used, "driver" if is_listed else "rest")


def run_parts(sample: Mapping[str, Any]) -> tuple[Part, ...]:
    """The bands of the run's chart, which add up to what its GPU, or on a CPU run its processes, use."""
    gpu = gpu_shown(sample)
    return host_parts(sample) if gpu is None else device_parts(sample, gpu)


def gpu_shown(sample: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The GPU whose memory the chart shows: the run's, else the first; None on a CPU run and without a GPU."""
    if sample.get("parts") and not sample.get("torch"):
        return None
    return gpu_of_run(sample) or next(iter(sample.get("gpus") or ()), None)


def host_parts(sample: Mapping[str, Any]) -> tuple[Part, ...]:
    """A CPU run's own memory: the engine's accounted parts and the rest of its resident memory."""
    resident = (sample.get("host") or {}).get("process_resident_bytes")
    if resident is None:
        return ()
    named = sample.get("parts") or {}
    parts = [Part(name.removesuffix("_bytes"), int(v), ACCOUNTED) for name, v in named.items() if v]
    return _closed(parts, resident, "rest")


def _closed(parts: list[Part], total: int, rest: str) -> tuple[Part, ...]:
    """The parts, cut or filled up to `total`: figures of different moments never stack above what was measured."""
    kept: list[Part] = []
    left = total
    for part in parts:
        taken = min(part.bytes_, left)
        left -= taken
        if taken > 0:
            kept.append(part if taken == part.bytes_ else Part(part.name, taken, ESTIMATED))
    if left > 0:
        kept.append(Part(rest, left, MEASURED))
    return tuple(kept)
