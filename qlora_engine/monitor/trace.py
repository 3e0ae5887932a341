"""Memory traces on disk: one sample a line, with the system before it is shown, read back whatever its end. Torch-free.

A line is handed to the kernel by one write call, so that killing the process loses none that was written; a line that a
kill in mid-call, a full disk or a power cut left half-written is passed over by readers and closed off by the next writer.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_engine import parsing
from qlora_engine.runs import sealed

TAIL_BYTES = 256 * 1024


class TraceWriter:
    """Appends samples to `path`, from any thread. One writer at a time; any number of readers."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._descriptor: int | None = os.open(path, flags, 0o600)
        self._lock = threading.Lock()
        self._needs_newline = _ends_in_the_middle(path)
        self.lost = 0
        """Samples that could not be written."""

    def append(self, sample: Mapping[str, Any]) -> None:
        """Write one sample; it survives this process when this returns.

        Raises:
            OSError: the disk is full or gone. What was half-written is closed off by the next append.
            ValueError: the writer is closed.
        """
        line = encode(sample) + b"\n"
        with self._lock:  # a descriptor closed by another thread may already be somebody else's file
            if self._descriptor is None:
                raise ValueError("the trace is closed")
            self._write(self._descriptor, b"\n" + line if self._needs_newline else line)

    def close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _write(self, descriptor: int, line: bytes) -> None:
        try:
            written = os.write(descriptor, line)
        except OSError:
            self.lost += 1
            raise
        self._needs_newline = written < len(line)
        if self._needs_newline:
            self.lost += 1
            raise OSError(f"only {written} of {len(line)} bytes of a sample could be written")


@dataclass(frozen=True)
class Trace:
    """What a file holds: good samples in order, and how many lines were not samples."""

    samples: tuple[dict[str, Any], ...]
    unreadable_lines: int


class TraceTail:
    """Reads what was added since the last look, for following a trace that another process writes."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0
        self.unreadable_lines = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Complete lines only; a line being written is left for the next call. A file that shrank is read anew."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._offset = 0 if size < self._offset else self._offset
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._offset += len(line)
                    yield from self._decoded(line)
        except FileNotFoundError:
            return

    def _decoded(self, line: bytes) -> Iterator[dict[str, Any]]:
        sample = decode(line)
        if sample is not None:
            yield sample
        elif line.strip():
            self.unreadable_lines += 1


def encode(sample: Mapping[str, Any]) -> bytes:
    """One line of JSON without newline, with a checksum of its own. What is unknown is left out: a day at 4 Hz is a third of
    a million lines. JSON has no NaN and no infinities, so they are unknown too."""
    line = json.dumps(_known(sample), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return sealed.sealed_line(line.encode("utf-8", errors="replace").decode("utf-8")).encode()


def decode(line: bytes) -> dict[str, Any] | None:
    """The sample of a line; None when it is not one, or not as it was written. Lines of older runs have no checksum."""
    try:
        found = parsing.from_json(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("time"), int | float):
        return None
    has_seal = found.pop("seal", None) is not None
    return found if not has_seal or sealed.is_sealed_line(line.decode("utf-8", errors="replace")) else None


def read(path: Path) -> Trace:
    """The whole trace; a missing file is an empty one. A half-written last line counts as unreadable."""
    samples: list[dict[str, Any]] = []
    unreadable = 0
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                sample = decode(line)
                if sample is not None:
                    samples.append(sample)
                elif line.strip():
                    unreadable += 1
    return Trace(tuple(samples), unreadable)


def newest(path: Path) -> dict[str, Any] | None:
    """The last good sample, found from the end without reading the whole file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    return next((sample for line in reversed(lines) if (sample := decode(line)) is not None), None)


def _ends_in_the_middle(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _known(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: _known(inner) for key, inner in value.items()}
        return {key: inner for key, inner in kept.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_known(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
