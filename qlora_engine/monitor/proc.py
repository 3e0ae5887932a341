"""What psutil does not tell cheaply about a process on Linux: swapped bytes and page faults, from /proc. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PROC = Path("/proc")
KIB = 1024


def swap_bytes(pid: int) -> int | None:
    """Bytes of the process that are swapped out (`VmSwap`); None when it is gone."""
    text = _read(f"{PROC}/{pid}/status")
    at = text.find(b"\nVmSwap:")
    return int(text[at + 8 : text.index(b"kB", at)]) * KIB if at >= 0 else None


def page_faults(pid: int) -> tuple[int, int] | None:
    """(minor, major) faults since the process began; None when it is gone. See proc(5), fields 10 and 12."""
    text = _read(f"{PROC}/{pid}/stat")
    fields = text[text.rfind(b")") + 2 :].split()  # the name before it may hold spaces and brackets
    return (int(fields[7]), int(fields[9])) if len(fields) > 9 else None


def faults_since(
    before: Mapping[int, tuple[int, int]], now: Mapping[int, tuple[int, int]]
) -> tuple[int, int]:
    """(minor, major) faults between two looks at a tree; a new member counts from its beginning, an ended one not."""
    minor = major = 0
    for pid, (low, high) in now.items():
        low_before, high_before = before.get(pid, (0, 0))
        minor += max(0, low - low_before)
        major += max(0, high - high_before)
    return minor, major


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - four times a second for every process
            return file.read(16384)
    except OSError:
        return b""
