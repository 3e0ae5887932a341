"""Samples as numbers over time for charts: a ring of the last day, and min/max downsampling that loses no spike.

Imports numpy: import it where a chart is made, not where the program starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qlora_engine.monitor import parts

Times: TypeAlias = NDArray[np.float64]
Values: TypeAlias = NDArray[np.float32]
DAY_AT_4_HZ = 24 * 3600 * 4
BUDGET_BYTES = 49_000_000
"""Of one ring, whatever it holds: 24 hours at 4 Hz of `ROWS`, less time of more."""
ROWS = 33
"""Series of a run on a computer with two GPUs."""
ROWS_PER_GPU = 8


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

    def __init__(self, capacity: int = DAY_AT_4_HZ, max_series: int = ROWS) -> None:
        self._times = np.zeros(capacity, np.float64)
        self._values = np.zeros((max_series, capacity), np.float32)
        self._rows: dict[str, int] = {}
        self._count = 0
        self.dropped: set[str] = set()
        """Series that found no row."""

    @classmethod
    def for_gpus(cls, count: int) -> Ring:
        """A day at 4 Hz with up to two GPUs; with more of them as long as `BUDGET_BYTES` allow."""
        rows = ROWS + ROWS_PER_GPU * max(0, count - 2)
        return cls(min(DAY_AT_4_HZ, BUDGET_BYTES // (8 + 4 * rows)), rows)

    def __len__(self) -> int:
        return min(self._count, len(self._times))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._rows)

    @property
    def oldest(self) -> float:
        """Its time; 0 while there is none."""
        return float(self._times[self._count % len(self._times) if self._count > len(self._times) else 0])

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

    def has_room_for(self, names: Iterable[str]) -> bool:
        return len(self._rows.keys() | set(names)) <= len(self._values)

    def with_room_for(self, names: Iterable[str]) -> Ring:
        """The newest samples in a ring with rows for `names` too, shorter where they exceed `BUDGET_BYTES`: a GPU that
        came later, a run on the CPU after one on the GPU."""
        rows = len(self._rows.keys() | set(names))
        capacity = min(len(self._times), BUDGET_BYTES // (8 + 4 * rows))
        ring, window = Ring(capacity, rows), self._window(-np.inf, np.inf)
        times = _gathered(self._times, window)[-capacity:]
        ring._times[: len(times)], ring._count = times, len(times)
        for name, row in self._rows.items():
            ring._values[ring._row(name), : len(times)] = _gathered(self._values[row], window)[-capacity:]
        return ring

    def append_sample(self, sample: Mapping[str, Any]) -> None:
        self.append(float(sample["time"]), numbers(sample))

    def curve(self, name: str, start: float, end: float, buckets: int) -> Curve:
        """`name` between two times (Unix seconds), at most two points a bucket. Empty for an unknown name."""
        row = self._rows.get(name)
        if row is None:
            return Curve(np.empty(0, np.float64), np.empty(0, np.float32))
        window = self._window(start, end)
        picked = extremes(_gathered(self._values[row], window), buckets)
        before, after = window[0], window[-1]
        count = before.stop - before.start
        at = np.where(picked < count, picked + before.start, picked - count + after.start)
        return Curve(self._times[at], self._values[row, at])

    def _window(self, start: float, end: float) -> tuple[slice, ...]:
        """Where the samples between two times are, oldest first."""
        at, capacity = self._count % len(self._times), len(self._times)
        halves = [(0, self._count)] if self._count <= capacity else [(at, capacity), (0, at)]
        found = []
        for low, high in halves:
            times = self._times[low:high]
            first, last = np.searchsorted(times, start, "left"), np.searchsorted(times, end, "right")
            found.append(slice(low + int(first), low + int(last)))
        return tuple(found)

    def _row(self, name: str) -> int | None:
        row = self._rows.get(name)
        if row is None and len(self._rows) < len(self._values):
            row = self._rows[name] = len(self._rows)
            self._values[row, : len(self)] = np.nan
        if row is None:
            self.dropped.add(name)
        return row


def downsample(times: Times, values: Values, buckets: int) -> Curve:
    """The samples that `extremes` picks."""
    picked = extremes(values, buckets)
    return Curve(times[picked], values[picked])


def extremes(values: Values, buckets: int) -> NDArray[np.int64]:
    """Which samples to draw: of each of `buckets` equal runs of samples the least and the most, in their order.

    Every bucket's extremes are kept, so no spike is lost; a bucket that is unknown throughout stays as one NaN.
    """
    count = len(values)
    if count <= 2 * buckets or buckets < 1:
        return np.arange(count)
    size = -(-count // buckets)
    starts = np.arange(0, count, size)
    full = count // size
    low = np.empty(len(starts), np.int64)
    high = np.empty(len(starts), np.int64)
    low[:full], high[:full] = _extremes(values[: full * size].reshape(full, size))
    if full < len(starts):
        low[full:], high[full:] = _extremes(values[full * size :].reshape(1, -1))
    pairs = np.stack([starts + np.minimum(low, high), starts + np.maximum(low, high)], axis=1).ravel()
    return pairs[np.diff(pairs, prepend=-1) > 0]


def numbers(sample: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of a sample that a chart draws: `host.<field>`, `paged.<field>`, `gpu<N>.<field>` or
    `gpu<N>.<slice>.<field>`, and `band.<part>`: the upper edge of each band of the stacked chart."""
    found: dict[str, float | None] = {}
    host = sample.get("host") or {}
    if host.get("total_bytes") is not None and host.get("available_bytes") is not None:
        found["host.used_bytes"] = host["total_bytes"] - host["available_bytes"]
    _add(found, "host", host, CHARTED_HOST)
    paged = sample.get("paged") or {}
    _add(found, "paged", paged, CHARTED_PAGED)
    if any(paged.get(name) is not None for name in FAULTS):
        found["paged.page_faults_per_second"] = sum(paged.get(name) or 0.0 for name in FAULTS)
    for gpu in sample.get("gpus") or ():
        mig = gpu.get("mig_index")
        _add(found, f"gpu{gpu['index']}" if mig is None else f"gpu{gpu['index']}.{mig}", gpu, CHARTED_GPU)
    return found | _edges(sample)


CHARTED_HOST = ("swap_used_bytes", "process_cpu_ratio", "major_page_faults_per_second")
CHARTED_PAGED = ("managed_bytes", "on_gpu_bytes", "to_gpu_bytes_per_second", "to_cpu_bytes_per_second")
FAULTS = ("gpu_page_faults_per_second", "cpu_page_faults_per_second")
"""Of managed pages, where they are counted; charted as one sum."""
CHARTED_GPU = (
    "used_bytes",
    "utilisation_ratio",
    "encoder_ratio",
    "temperature_celsius",
    "power_watts",
    "sm_clock_mhz",
    "pcie_received_bytes_per_second",
    "pcie_sent_bytes_per_second",
)


def _add(
    found: dict[str, float | None], block: str, fields: Mapping[str, Any], wanted: tuple[str, ...]
) -> None:
    for name in wanted:
        value = fields.get(name)
        if isinstance(value, int | float):
            found[f"{block}.{name}"] = value


def _edges(sample: Mapping[str, Any]) -> dict[str, float | None]:
    """Upper edges from the bottom up, in the order of `DEVICE_PARTS` or `HOST_PARTS`; a band that is not there is as
    thick as nothing. Summed here, once, so that drawing a day is a matter of looking it up."""
    amounts = {part.name: part.bytes_ for part in parts.run_parts(sample)}
    if not amounts:
        return {}
    names = parts.HOST_PARTS if parts.gpu_shown(sample) is None else parts.DEVICE_PARTS
    return {
        f"band.{name}": edge
        for name, edge in zip(names, itertools.accumulate(amounts.get(n, 0) for n in names), strict=True)
    }


def _extremes(body: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Columns of each row's least and most; NaN never wins over a number."""
    low, high = body.argmin(axis=1), body.argmax(axis=1)  # a NaN in the row is what both find
    rows = np.flatnonzero(np.isnan(body[np.arange(len(body)), low]))
    if len(rows):
        some = body[rows]
        unknown = np.isnan(some)
        low[rows] = np.where(unknown, np.inf, some).argmin(axis=1)
        high[rows] = np.where(unknown, -np.inf, some).argmax(axis=1)
    return low, high


def _gathered(row: NDArray[Any], window: tuple[slice, ...]) -> NDArray[Any]:
    pieces = [row[part] for part in window if part.stop > part.start]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [row[:0]])
