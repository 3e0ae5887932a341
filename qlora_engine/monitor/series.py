"""Samples as numbers over time for charts: a ring of the last day, and min/max downsampling that loses no spike.

Imports numpy: import it where a chart is made, not where the program starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Times: TypeAlias = NDArray[np.float64]
Values: TypeAlias = NDArray[np.float32]
DAY_AT_4_HZ = 24 * 3600 * 4
MAX_SERIES = 24
"""24 series of float32 and one of float64 times for a day at 4 Hz: 35 MiB."""


@dataclass(frozen=True)
class Curve:
    """Points of one series in time order; NaN where it was unknown. Two points a bucket at most: its least, its most."""

    times: Times
    values: Values


class Ring:
    """The last `capacity` samples of up to `max_series` named series. Memory is taken as it fills; the oldest go first.

    float32 keeps seven digits: 2 KiB in 24 GiB, far under what a chart can show. Live view and history both go
    through it, so they draw the same.
    """

    def __init__(self, capacity: int = DAY_AT_4_HZ, max_series: int = MAX_SERIES) -> None:
        self._times = np.zeros(capacity, np.float64)
        self._values = np.zeros((max_series, capacity), np.float32)
        self._rows: dict[str, int] = {}
        self._count = 0
        self.dropped: set[str] = set()
        """Series that found no row."""

    def __len__(self) -> int:
        return min(self._count, len(self._times))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._rows)

    @property
    def memory_bytes(self) -> int:
        """Bytes when full."""
        return self._times.nbytes + self._values.nbytes

    def append(self, time: float, values: Mapping[str, float | None]) -> None:
        """One sample. A time before the newest (a clock set back) is moved up to it, so that times stay ordered."""
        at = self._count % len(self._times)
        newest = self._times[at - 1] if self._count else time
        self._times[at] = max(time, newest)
        found = {self._row(name): value for name, value in values.items()}
        self._values[: len(self._rows), at] = np.nan  # rows not in use stay untouched, so take no memory
        for row, value in found.items():
            if row is not None and value is not None:
                self._values[row, at] = value
        self._count += 1

    def append_sample(self, sample: Mapping[str, Any]) -> None:
        self.append(float(sample["time"]), numbers(sample))

    def curve(self, name: str, start: float, end: float, buckets: int) -> Curve:
        """`name` between two times (Unix seconds), at most two points a bucket. Empty for an unknown name."""
        row = self._rows.get(name)
        if row is None:
            return Curve(np.empty(0, np.float64), np.empty(0, np.float32))
        pieces = [(self._times[part], self._values[row, part]) for part in self._parts()]
        cut = [_between(times, values, start, end) for times, values in pieces]
        times = np.concatenate([t for t, _ in cut]) if len(cut) > 1 else cut[0][0]
        values = np.concatenate([v for _, v in cut]) if len(cut) > 1 else cut[0][1]
        return downsample(times, values, buckets)

    def _parts(self) -> tuple[slice, ...]:
        at, capacity = self._count % len(self._times), len(self._times)
        if self._count <= capacity:
            return (slice(0, self._count),)
        return (slice(at, capacity), slice(0, at))

    def _row(self, name: str) -> int | None:
        row = self._rows.get(name)
        if row is None and len(self._rows) < len(self._values):
            row = self._rows[name] = len(self._rows)
            self._values[row, : len(self)] = np.nan
        if row is None:
            self.dropped.add(name)
        return row


def downsample(times: Times, values: Values, buckets: int) -> Curve:
    """At most two points of each of `buckets` equal runs of samples: the least and the most, in their order.

    Every bucket's extremes are kept, so no spike is lost; a bucket that is unknown throughout stays as one NaN.
    """
    count = len(times)
    if count <= 2 * buckets or buckets < 1:
        return Curve(times.copy(), values.copy())
    size = -(-count // buckets)
    starts = np.arange(0, count, size)
    full = count // size
    low = np.empty(len(starts), np.int64)
    high = np.empty(len(starts), np.int64)
    body = values[: full * size].reshape(full, size)
    low[:full], high[:full] = _extremes(body)
    if full < len(starts):
        tail_low, tail_high = _extremes(values[full * size :].reshape(1, -1))
        low[full], high[full] = tail_low[0], tail_high[0]
    first, last = starts + np.minimum(low, high), starts + np.maximum(low, high)
    picked = np.unique(np.concatenate([first, last]))
    return Curve(times[picked], values[picked])


def numbers(sample: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of a sample that a chart may draw, named `host.<field>`, `gpu<N>.<field>`, `paged.<field>`,
    `torch.<field>`, `parts.<field>`."""
    found: dict[str, float | None] = {}
    for block in ("host", "paged", "torch", "parts"):
        _add(found, block, sample.get(block) or {}, None)
    for gpu in sample.get("gpus") or ():
        mig = gpu.get("mig_index")
        name = f"gpu{gpu['index']}" if mig is None else f"gpu{gpu['index']}.{mig}"
        _add(found, name, gpu, CHARTED_GPU)
    return {name: value for name, value in found.items() if name not in CONSTANT}


CHARTED_GPU = (
    "used_bytes",
    "own_bytes",
    "others_bytes",
    "utilisation_ratio",
    "temperature_celsius",
    "power_watts",
    "sm_clock_mhz",
    "pcie_received_bytes_per_second",
    "pcie_sent_bytes_per_second",
)
CONSTANT = frozenset({"host.total_bytes", "host.swap_total_bytes", "host.cgroup_limit_bytes"})


def _add(
    found: dict[str, float | None], block: str, fields: Mapping[str, Any], wanted: tuple[str, ...] | None
) -> None:
    for name, value in fields.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and (wanted is None or name in wanted):
            found[f"{block}.{name}"] = value


def _extremes(body: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns of each row's least and most; NaN never wins over a number."""
    if not np.isnan(body).any():
        return body.argmin(axis=1), body.argmax(axis=1)
    unknown = np.isnan(body)
    return (
        np.where(unknown, np.inf, body).argmin(axis=1),
        np.where(unknown, -np.inf, body).argmax(axis=1),
    )


def _between(times: Times, values: Values, start: float, end: float) -> tuple[Times, Values]:
    first, last = np.searchsorted(times, start, "left"), np.searchsorted(times, end, "right")
    return times[first:last], values[first:last]
