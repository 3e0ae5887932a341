"""The host's memory and one process tree's share of it, through psutil. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class HostSample:
    """Bytes and ratios. `process_*` are of the watched process and its children; None when it is gone."""

    total_bytes: int
    available_bytes: int
    swap_used_bytes: int
    swap_total_bytes: int
    cpu_ratio: float
    process_resident_bytes: int | None
    process_cpu_ratio: float | None


class Host:
    """Reads the host and the tree of `pid` (default: this process)."""

    def __init__(self, pid: int | None = None) -> None:
        self._processes: dict[int, psutil.Process] = {}
        self._root = _process(pid)
        psutil.cpu_percent(None)

    def sample(self) -> HostSample:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        resident, cpu = self._tree()
        return HostSample(
            total_bytes=memory.total,
            available_bytes=memory.available,
            swap_used_bytes=swap.used,
            swap_total_bytes=swap.total,
            cpu_ratio=psutil.cpu_percent(None) / 100,
            process_resident_bytes=resident,
            process_cpu_ratio=cpu,
        )

    def _tree(self) -> tuple[int | None, float | None]:
        if self._root is None:
            return None, None
        try:
            members = [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return None, None
        resident, cpu = 0, 0.0
        for member in members:
            known = self._processes.setdefault(member.pid, member)
            try:
                resident += known.memory_info().rss
                cpu += known.cpu_percent(None)
            except psutil.Error:
                self._processes.pop(member.pid, None)
        return resident, cpu / 100


def _process(pid: int | None) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None
