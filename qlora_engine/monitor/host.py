"""The host's memory and one process tree's share of it: psutil, and /proc and cgroup files on Linux. Torch-free."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from qlora_engine.monitor import cgroup, proc

TREE_SECONDS = 2.0
"""How often the tree's members and control groups are looked up: finding children means reading every process."""


@dataclass(frozen=True)
class HostSample:
    """Bytes, ratios and rates. `process_*` are of the watched process and its children; `process_shared_bytes` is
    the part of the resident bytes that other processes may share. `process_cpu_ratio` is in cores: 1.5 means one
    and a half. `unavailable` names each field that is None and says why."""

    total_bytes: int
    available_bytes: int
    swap_used_bytes: int
    swap_total_bytes: int
    cpu_ratio: float
    process_resident_bytes: int | None = None
    process_shared_bytes: int | None = None
    process_swap_bytes: int | None = None
    process_cpu_ratio: float | None = None
    process_count: int | None = None
    page_faults_per_second: float | None = None
    major_page_faults_per_second: float | None = None
    cgroup_limit_bytes: int | None = None
    cgroup_used_bytes: int | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict)


class Host:
    """Reads the host and the tree of `pid` (default: this process). One thread at a time."""

    def __init__(self, pid: int | None = None) -> None:
        self._root = _process(pid)
        self._members: list[psutil.Process] = []
        self._listed_at = -TREE_SECONDS
        self._group: cgroup.GroupMemory | str | None = None
        self._faults_before: tuple[float, dict[int, tuple[int, int]]] | None = None
        self.pids: frozenset[int] = frozenset()
        psutil.cpu_percent(None)

    def sample(self) -> HostSample:
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        values: dict[str, Any] = {}
        no: dict[str, str] = {}
        is_due = time.monotonic() - self._listed_at >= TREE_SECONDS
        self._tree(values, no)
        if sys.platform == "linux":
            self._limits(values, no, is_due)
        else:
            no |= dict.fromkeys(("cgroup_limit_bytes", "cgroup_used_bytes"), "only Linux has control groups")
        return HostSample(
            total_bytes=memory.total,
            available_bytes=memory.available,
            swap_used_bytes=swap.used,
            swap_total_bytes=swap.total,
            cpu_ratio=psutil.cpu_percent(None) / 100,
            unavailable=no,
            **values,
        )

    def memory(self) -> tuple[int, int]:
        """(total, available) bytes of the computer; callable from any thread."""
        found = psutil.virtual_memory()
        return found.total, found.available

    def is_running(self) -> bool:
        """False once the watched process has ended, reaped or not; one that reuses its number is not it."""
        try:
            return (
                self._root is not None
                and self._root.is_running()
                and self._root.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False

    def _tree(self, values: dict[str, Any], no: dict[str, str]) -> None:
        members = self._living()
        if not members:
            names = ("process_resident_bytes", "process_shared_bytes", "process_swap_bytes", "process_cpu_ratio",
                     "process_count", "page_faults_per_second", "major_page_faults_per_second")  # fmt: skip
            no |= dict.fromkeys(names, "the watched process has ended")
            return
        resident = shared = 0
        cpu = 0.0
        for member in members:
            try:
                memory = member.memory_info()
                cpu += member.cpu_percent(None)
            except psutil.Error:
                continue
            resident += memory.rss
            shared += getattr(memory, "shared", 0)
        values |= {
            "process_resident_bytes": resident,
            "process_cpu_ratio": cpu / 100,
            "process_count": len(members),
        }
        if sys.platform == "linux":
            values["process_shared_bytes"] = shared
        else:
            no["process_shared_bytes"] = "this system does not tell it"
        self._swap_and_faults(members, values, no)

    def _living(self) -> list[psutil.Process]:
        """The tree; its membership is looked up every TREE_SECONDS."""
        if self._root is None:
            return []
        now = time.monotonic()
        if now - self._listed_at >= TREE_SECONDS:
            self._listed_at = now
            known = {member: member for member in self._members}
            try:
                found = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:
                found = []
            self._members = [known.get(p, p) for p in found]  # the same object remembers its CPU times
            self.pids = frozenset(p.pid for p in self._members)
        if self._members and not self.is_running():
            self._members, self.pids = [], frozenset()
        return self._members

    def _swap_and_faults(
        self, members: list[psutil.Process], values: dict[str, Any], no: dict[str, str]
    ) -> None:
        if sys.platform != "linux":
            names = ("process_swap_bytes", "page_faults_per_second", "major_page_faults_per_second")
            no |= dict.fromkeys(names, "this system does not tell it")
            return
        pids = [p.pid for p in members]
        values["process_swap_bytes"] = sum(proc.swap_bytes(pid) or 0 for pid in pids)
        now = time.monotonic()
        faults = {pid: found for pid in pids if (found := proc.page_faults(pid)) is not None}
        before, self._faults_before = self._faults_before, (now, faults)
        if before is None or now <= before[0]:
            no |= dict.fromkeys(("page_faults_per_second", "major_page_faults_per_second"), "not read yet")
            return
        minor, major = proc.faults_since(before[1], faults)
        seconds = now - before[0]
        values["page_faults_per_second"] = (minor + major) / seconds
        values["major_page_faults_per_second"] = major / seconds

    def _limits(self, values: dict[str, Any], no: dict[str, str], is_due: bool) -> None:
        if is_due or self._group is None:
            self._group = cgroup.memory_limit(self._root.pid if self._root else None)
        if isinstance(self._group, str):
            no |= dict.fromkeys(("cgroup_limit_bytes", "cgroup_used_bytes"), self._group)
            return
        values |= {
            "cgroup_limit_bytes": self._group.limit_bytes,
            "cgroup_used_bytes": self._group.used_bytes,
        }
        if self._group.used_bytes is None:
            no["cgroup_used_bytes"] = "the control group does not tell it"


def _process(pid: int | None) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except (psutil.Error, ValueError, OverflowError):
        return None
