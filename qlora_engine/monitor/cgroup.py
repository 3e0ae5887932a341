"""The memory limit of the control group a process is in (containers, systemd slices), versions 1 and 2. Torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")
UNLIMITED_BYTES = 2**62
"""Version 1 writes a number near 2**63 for "no limit"."""
NO_LIMIT = "no control group limits this process"


@dataclass(frozen=True)
class GroupMemory:
    """`used_bytes` counts the page cache too, as the kernel does when it enforces the limit."""

    limit_bytes: int
    used_bytes: int | None


def memory_limit(pid: int | None = None) -> GroupMemory | str:
    """The tightest limit on the way from the process's group up to the root, or why there is none."""
    folder, version = _group(pid)
    if folder is None:
        return NO_LIMIT
    limit_name, used_name = (
        ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )  # fmt: skip
    tightest: GroupMemory | None = None
    for place in (folder, *folder.parents):
        if place != ROOT and ROOT not in place.parents:
            break
        limit = _number(place / limit_name)
        if limit is not None and (tightest is None or limit < tightest.limit_bytes):
            tightest = GroupMemory(limit, _number(place / used_name))
    return tightest or NO_LIMIT


def _group(pid: int | None) -> tuple[Path | None, int]:
    """The group's folder and the version; inside a container its own group is mounted at the root."""
    try:
        lines = (PROC / str(pid or os.getpid()) / "cgroup").read_text().splitlines()
    except OSError:
        return None, 0
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _existing(ROOT / "memory", path), 1
        if number == "0" and not any("memory" in other.split(":")[1].split(",") for other in lines):
            return _existing(ROOT, path), 2
    return None, 0


def _existing(root: Path, path: str) -> Path:
    folder = root / path.lstrip("/")
    return folder if folder.is_dir() else root


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < UNLIMITED_BYTES else None
