"""The host's memory: true figures of a real process tree, and limits of control groups."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qlora_engine.monitor import cgroup, host, proc
from qlora_engine.monitor.host import Host
from tests.engine.monitor.conftest import until
from tests.support.pace import limit

MIB = 1024**2
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
CHILD = """
import sys
held = [b"x"]
for line in sys.stdin:
    held = bytearray(int(line))
    held[::4096] = b"y" * len(held[::4096])
    print("done", flush=True)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process that holds as many touched bytes as it is told."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def hold(process: subprocess.Popen[str], amount: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{amount}\n")
    process.stdin.flush()
    process.stdout.readline()


def test_a_tree_is_summed(child: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "TREE_SECONDS", 0.0)
    watched = Host()
    hold(child, 1)
    before = watched.sample()
    hold(child, 200 * MIB)
    after = watched.sample()
    assert before.process_resident_bytes is not None
    assert after.process_resident_bytes is not None
    assert after.process_resident_bytes - before.process_resident_bytes == pytest.approx(200 * MIB, rel=0.05)
    assert {os.getpid(), child.pid} <= watched.pids
    assert after.process_count == len(watched.pids)


@linux
def test_page_faults_are_counted_per_second(child: subprocess.Popen[str]) -> None:
    hold(child, 1)
    watched = Host(child.pid)
    assert watched.sample().unavailable["page_faults_per_second"] == "not read yet"
    began = time.monotonic()
    hold(child, 100 * MIB)
    sample = watched.sample()
    seconds = time.monotonic() - began
    assert sample.page_faults_per_second is not None
    pages = sample.page_faults_per_second * seconds
    assert 50 * MIB / 2**21 < pages < 3 * 100 * MIB / 4096  # huge pages fault once in 2 MiB
    assert sample.major_page_faults_per_second == 0


def test_the_end_of_the_watched_process(child: subprocess.Popen[str]) -> None:
    watched = Host(child.pid)
    assert watched.is_running()
    assert watched.sample().process_resident_bytes
    child.kill()
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert not watched.is_running()  # ended, though nobody has asked for its exit code yet
    sample = watched.sample()
    assert sample.process_resident_bytes is None
    assert sample.unavailable["process_resident_bytes"] == "the watched process has ended"
    assert sample.total_bytes > 0
    child.wait()
    assert watched.sample().process_count is None


@pytest.mark.parametrize("pid", [2**22 + 5, 2**40, -3])
def test_a_process_that_never_was(pid: int) -> None:
    watched = Host(pid)
    assert not watched.is_running()
    assert watched.sample().process_count is None


def test_every_field_is_known_or_says_why() -> None:
    sample = Host().sample()
    for name, value in vars(sample).items():
        assert value is not None or name in sample.unavailable, name


@linux
def test_what_a_look_costs() -> None:
    watched = Host()
    watched.sample()
    began = time.process_time()
    for _ in range(100):
        watched.sample()
    cost = (time.process_time() - began) / 100
    print(f"one look at the host: {cost * 1e3:.2f} ms of processor")
    assert cost * 4 < limit(0.01)  # at 4 Hz under 1 % of a core


@linux
def test_proc_of_processes_that_are_gone_or_oddly_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert proc.page_faults(2**22 + 5) is None
    assert proc.swap_bytes(2**22 + 5) is None
    monkeypatch.setattr(proc, "PROC", tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b) c (d) S 1 7 7 0 -1 4194304 1234 0 56 0 1 1 0 0 20 0 1 0")
    (tmp_path / "7" / "status").write_text("Name:\ta\nVmRSS:\t 10 kB\nVmSwap:\t    2048 kB\nThreads:\t1\n")
    assert proc.page_faults(7) == (1234, 56)
    assert proc.swap_bytes(7) == 2 * MIB
    assert proc.faults_since({1: (5, 1), 2: (9, 9)}, {1: (8, 2), 3: (4, 0)}) == (7, 1)


def groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, files: dict[str, str]
) -> cgroup.GroupMemory | str:
    """The answer for a process in these control groups."""
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "fs")
    monkeypatch.setattr(cgroup, "PROC", tmp_path / "proc")
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "cgroup").write_text(lines)
    (tmp_path / "fs").mkdir()
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return cgroup.memory_limit(7)


NO_LIMIT = "no control group limits this process"
V1 = "9:name=systemd:/\n4:memory:/job\n0::/\n"


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        (
            "0::/a/b\n",
            {"a/b/memory.max": "max\n", "a/memory.max": "4096\n", "a/memory.current": "77\n"},
            (4096, 77),
        ),
        (
            "0::/a/b\n",
            {"a/b/memory.max": "1000", "a/b/memory.current": "5", "a/memory.max": "4096"},
            (1000, 5),
        ),
        ("0::/a\n", {"a/memory.max": "max"}, NO_LIMIT),
        (
            "0::/elsewhere\n",
            {"memory.max": "2000", "memory.current": "9"},
            (2000, 9),
        ),  # a container's own mount
        (
            V1,
            {"memory/job/memory.limit_in_bytes": "3000", "memory/job/memory.usage_in_bytes": "8"},
            (3000, 8),
        ),
        (V1, {"memory/job/memory.limit_in_bytes": "9223372036854771712"}, NO_LIMIT),
        (V1, {"memory/job/memory.limit_in_bytes": "3000"}, (3000, None)),
        ("", {}, NO_LIMIT),
    ],
)
def test_control_groups(
    lines: str,
    files: dict[str, str],
    expected: tuple[int, int | None] | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = groups(tmp_path, monkeypatch, lines, files)
    assert found == (expected if isinstance(expected, str) else cgroup.GroupMemory(*expected))


def test_no_control_groups_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "PROC", tmp_path)
    assert cgroup.memory_limit(7) == NO_LIMIT
