"""The curve of a run as columns of numbers, read from `metrics.jsonl` and kept beside the program's cache. Torch-free.

A file of 20,000 steps is read in tenths of a second, and only what was added is read again. Steps that a crash threw away
are left out, as are lines that are not as they were written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import eq
from pathlib import Path
from typing import BinaryIO

from qlora_engine import events, parsing, paths
from qlora_engine.events import EvaluationFinished, Noticed, RunStarted, StepFinished
from qlora_engine.runs import sealed
from qlora_engine.runs.stored import METRICS_FILE

COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "tokens", "step_seconds")
"""What is kept of a step; NaN where it is unknown or no finite number."""
RATE = "tokens_per_second"
"""A column that is computed of two others, as the run itself did."""
X_AXES = {"step": "Step", "tokens": "Tokens", "seconds": "Seconds of training"}
_STEP_START = b'{"event": "StepFinished", '
_STEP = re.compile(
    rb'^(\{"event": "StepFinished", "step": (\d+), "total_steps": \d+, "epoch": [^,]+, "loss": ([^,]+), '
    rb'"learning_rate": ([^,]+), "grad_norm": ([^,]+), "tokens": (\d+), "trained_tokens": \d+, '
    rb'"step_seconds": ([^,]+), "tokens_per_second": [^,]+, "eta_seconds": [^,]+, "peak_memory_bytes": [^,]+, '
    rb'"unix_time": [^,]+), "seal": (\d+)\}\n',
    re.MULTILINE,
)
"""A step as this program writes it; any other line goes through the JSON reader."""
_START = b'{"event": "RunStarted", '
BYTES_AT_ONCE = 1 << 16
"""What is read and taken apart at once, so that what is made of it stays in the processor's cache."""
CACHED_FROM_BYTES = 200_000


@dataclass
class Curve:
    """One run's history. `columns[name][i]` belongs to step `columns["step"][i]`, steps ascending.

    `total("tokens")` and `total("step_seconds")` sum up; `held_out` are the evaluations, `notices` what was said on the way.
    """

    columns: dict[str, array[float]] = field(default_factory=lambda: {name: array("d") for name in COLUMNS})
    held_out: list[EvaluationFinished] = field(default_factory=list)
    notices: list[Noticed] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.columns["step"])

    def x(self, axis: str = "step") -> array[float]:
        """Where each step lies on one of `X_AXES`: its number, tokens seen, or seconds of training, up to its end."""
        if axis == "step":
            return self.columns["step"]
        return _summed(self.columns["tokens" if axis == "tokens" else "step_seconds"])

    def y(self, column: str = "loss", smoothing: float = 0.0) -> array[float]:
        """A column or `RATE`, smoothed by a weight from 0 to below 1 (see `smoothed`)."""
        return smoothed(self._values(column), smoothing)

    def held_out_x(self, axis: str = "step") -> list[float]:
        """Where each evaluation lies on `axis`."""
        along, steps = self.x(axis), self.columns["step"]
        places = (bisect_right(steps, event.step) - 1 for event in self.held_out)
        if axis == "step":
            return [float(event.step) for event in self.held_out]
        return [along[place] if place >= 0 else 0.0 for place in places]

    def value_at(self, x: float, axis: str = "step", column: str = "loss") -> float | None:
        """The value of the last step at or before `x`; None before the first and after the last."""
        along = self.x(axis)
        place = bisect_right(along, x) - 1
        if place < 0 or x > along[-1]:
            return None
        value = self._values(column)[place]
        return None if math.isnan(value) else value

    def _values(self, column: str) -> array[float]:
        if column != RATE:
            return self.columns[column]
        pairs = zip(self.columns["tokens"], self.columns["step_seconds"], strict=True)
        return array("d", (tokens / seconds if seconds else math.nan for tokens, seconds in pairs))

    def cut_to(self, step: int) -> None:
        """Forget what came after `step`: a resume began there."""
        keep = bisect_right(self.columns["step"], step)
        for column in self.columns.values():
            del column[keep:]
        self.held_out = [event for event in self.held_out if event.step <= step]


class CurveReader:
    """Reads a run's curve, and on later calls what was added since."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_FILE
        self._offset = 0
        self._inode = 0
        self.curve = Curve()

    def update(self) -> bool:
        """Read on; True when something was added. A file that is gone, or another, is read anew."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_size < self._offset or found.st_ino != self._inode:
                    self._offset, self._inode, self.curve = 0, found.st_ino, Curve()
                if found.st_size == self._offset:
                    return False
                file.seek(self._offset)
                return self._read_on(file)
        except OSError:
            had_any, self._offset, self.curve = bool(self._offset), 0, Curve()
            return had_any

    def _read_on(self, file: BinaryIO) -> bool:
        """Take every whole line; half of one is read next time."""
        rest, before = b"", self._offset
        while chunk := file.read(BYTES_AT_ONCE):
            text = rest + chunk
            cut = text.rfind(b"\n") + 1
            _take(self.curve, text[:cut])
            self._offset, rest = self._offset + cut, text[cut:]
        return self._offset > before


def read(run_dir: Path) -> Curve:
    """The curve of a run as it is now; that of an unchanged long file comes from the cache."""
    path = run_dir / METRICS_FILE
    key = _key(path)
    kept = _cached(path, key)
    if kept is not None:
        return kept
    reader = CurveReader(run_dir)
    reader.update()
    if key and os.path.getsize(path) >= CACHED_FROM_BYTES and key == _key(path):  # noqa: PTH202
        _keep(path, key, reader.curve)
    return reader.curve


def made_ready(run_dir: Path) -> None:
    """Keep the curve of a run that has ended, so that its first comparison need not read it; what fails costs that time alone."""
    with contextlib.suppress(OSError, MemoryError):
        if os.path.getsize(run_dir / METRICS_FILE) >= CACHED_FROM_BYTES:  # noqa: PTH202
            read(run_dir)


def smoothed(values: array[float], weight: float) -> array[float]:
    """An exponential mean: each value counts `1 - weight` to the one before it, corrected for the short beginning (pandas'
    `ewm(alpha=1 - weight).mean()`). NaN is passed over and stays; weight 0 changes nothing."""
    if not 0 < weight < 1:
        return values
    total, norm, result = 0.0, 0.0, array("d")
    for value in values:
        total, norm = total * weight, norm * weight
        if value == value:  # not NaN
            total, norm = total + value, norm + 1.0
            result.append(total / norm)
        else:
            result.append(math.nan)
    return result


def typical_range(series: list[array[float]], share: float = 0.01) -> tuple[float, float] | None:
    """The lowest and highest value without the outermost `share` at either end: for a chart that clips outliers."""
    values = sorted(v for one in series for v in one if math.isfinite(v))
    if not values:
        return None
    cut = int(len(values) * share)
    return values[cut], values[len(values) - 1 - cut]


def _summed(values: array[float]) -> array[float]:
    total, result = 0.0, array("d")
    for value in values:
        total += value if value == value else 0.0
        result.append(total)
    return result


def _take(curve: Curve, text: bytes) -> None:
    """Add whole lines, in pieces that a start begins: a resume takes back steps before it."""
    begin, start = 0, text.find(_START, 1)
    while start >= 0:
        _take_piece(curve, text[begin:start])
        begin, start = start, text.find(_START, start + 1)
    _take_piece(curve, text[begin:] if begin else text)


def _take_piece(curve: Curve, text: bytes) -> None:
    """All steps of a piece at once, by one search; where it and the other lines are not all there is, a line is damaged or of
    another program, and each is read by itself."""
    rows, others, count = _STEP.findall(text), [], text.count(b"\n")
    if len(rows) != count:
        lines = text.split(b"\n")[:count]
        others = [line for line in lines if not line.startswith(_STEP_START)]
        if len(rows) + len(others) != count:
            rows, others = [], lines
    for line in others:
        _take_other(curve, line)
    if rows:
        _add(curve, rows)


def _add(curve: Curve, rows: list[tuple[bytes, ...]]) -> None:
    """Move rows of texts (what is sealed, a text for each column, the seal) into the columns, if they are as they were written."""
    bodies, *columns, seals = zip(*rows, strict=True)
    are_whole = list(map(eq, map(zlib.crc32, bodies), map(int, seals)))
    if not all(are_whole):
        columns = [tuple(compress(texts, are_whole)) for texts in columns]
    for name, texts in zip(COLUMNS, columns, strict=True):
        curve.columns[name].fromlist(_numbers(texts))


def _numbers(texts: Sequence[bytes]) -> list[float]:
    try:
        return list(map(float, texts))
    except ValueError:
        return [math.nan if text == b"null" else _number(text) for text in texts]


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _take_other(curve: Curve, line: bytes) -> None:
    text = line.decode("utf-8", errors="replace")
    if not text.strip() or not sealed.is_sealed_line(text):
        return
    try:
        event = events.decode(text)
    except ValueError:
        return
    if isinstance(event, StepFinished):
        for name in COLUMNS:
            value = getattr(event, name)
            curve.columns[name].append(math.nan if value is None else float(value))
    elif isinstance(event, EvaluationFinished):
        curve.held_out.append(event)
    elif isinstance(event, Noticed):
        curve.notices.append(event)
    elif isinstance(event, RunStarted) and event.is_resumed:
        curve.cut_to(event.from_step)


def _key(path: Path) -> str:
    """What a kept curve must have been made of; empty where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}-{zlib.crc32(' '.join(COLUMNS).encode())}"


def _place(path: Path) -> Path:
    return (
        paths.cache_dir() / "curves" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]}.bin"
    )


def _keep(path: Path, key: str, curve: Curve) -> None:
    """One line of JSON with the events, then the columns as they lie in memory; a full disk costs only the time."""
    body = b"".join(column.tobytes() for column in curve.columns.values())
    told = [events.encode(event) for event in (*curve.held_out, *curve.notices)]
    head = {"key": key, "count": len(curve), "crc32": zlib.crc32(body), "events": told}
    place = _place(path)
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = place.with_suffix(f".{os.getpid()}.tmp")
        with open(aside, "wb", opener=lambda name, flags: os.open(name, flags, sealed.PRIVATE_FILE)) as file:
            file.write(json.dumps(head).encode() + b"\n" + body)
        aside.replace(place)


def _cached(path: Path, key: str) -> Curve | None:
    try:
        with _place(path).open("rb") as file:
            head = parsing.object_from_json(file.readline())
            body = file.read()
        if not key or head["key"] != key or head["crc32"] != zlib.crc32(body):
            return None
        curve, size = Curve(), 8 * int(head["count"])
        for place, column in enumerate(curve.columns.values()):
            column.frombytes(body[place * size : (place + 1) * size])
        for event in map(events.decode, head["events"]):
            if isinstance(event, EvaluationFinished):
                curve.held_out.append(event)
            elif isinstance(event, Noticed):
                curve.notices.append(event)
        return curve
    except (OSError, ValueError, KeyError, TypeError):
        return None
