"""Traces on disk: nothing is lost to a killed process, a full disk or a half-written line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_engine.monitor import trace
from qlora_engine.monitor.trace import TraceTail, TraceWriter
from tests.engine.monitor.conftest import until
from tests.engine.monitor.samples import cpu_sample, gpu_sample

ROOT = Path(__file__).resolve().parents[3]
VALUES = st.recursive(
    st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES))
def test_what_is_written_is_read(fields: dict[str, Any]) -> None:
    sample = {**fields, "time": 1.5}
    assert trace.decode(trace.encode(sample)) == sample


def test_unknown_is_left_out() -> None:
    found = trace.decode(
        trace.encode({"time": 1, "a": None, "b": float("nan"), "c": {"d": float("inf"), "e": 0}})
    )
    assert found == {"time": 1, "c": {"e": 0}}


@given(st.binary(max_size=60))
def test_any_line_is_a_sample_or_none(line: bytes) -> None:
    found = trace.decode(line)
    assert found is None or "time" in found


def test_a_killed_process_loses_no_sample(tmp_path: Path) -> None:
    """The writer says each number after the line is written; after kill -9 every number said is on disk."""
    path = tmp_path / "memory.jsonl"
    script = (
        "import sys; from pathlib import Path; from qlora_engine.monitor.trace import TraceWriter\n"
        "writer = TraceWriter(Path(sys.argv[1]))\n"
        "n = 0\n"
        "while True:\n"
        "    writer.append({'time': n, 'filler': 'x' * 2000})\n"
        "    sys.stdout.write(f'{n}\\n'); sys.stdout.flush(); n += 1\n"
    )
    for _ in range(5):
        path.unlink(missing_ok=True)
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.15)
        child.send_signal(signal.SIGKILL)
        said = [int(n) for n in child.stdout.read().split("\n")[:-1] if n]
        child.wait()
        child.stdout.close()
        found = trace.read(path)
        # A kill in the middle of a write leaves half of a line; nothing was said of that one.
        assert found.unreadable_lines <= 1
        written = [sample["time"] for sample in found.samples]
        assert written == list(range(len(written)))
        assert len(written) > said[-1] > 100


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_half_written_line_spoils_only_itself(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    writer = TraceWriter(path)
    for at in range(3):
        writer.append({"time": at, "padding": "x" * 40})
    writer.close()
    path.write_bytes(path.read_bytes()[:-cut])
    writer = TraceWriter(path)
    writer.append({"time": 3})
    writer.close()
    found = trace.read(path)
    # Cut of one byte: only the newline was lost, and the sample is whole.
    assert [s["time"] for s in found.samples] == ([0, 1, 2, 3] if cut == 1 else [0, 1, 3])
    assert found.unreadable_lines == (0 if cut == 1 else 1)
    assert trace.newest(path) == {"time": 3}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always-full device of Linux")
def test_a_full_disk_is_told_and_counted() -> None:
    writer = TraceWriter(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        writer.append({"time": 1})
    assert writer.lost == 1
    writer.close()


def test_half_a_write_is_closed_off_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "memory.jsonl"
    writer = TraceWriter(path)
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real(fd, data[:9]))
        with pytest.raises(OSError, match="only 9 of"):
            writer.append({"time": 1, "padding": "x" * 50})
    writer.append({"time": 2})
    writer.close()
    assert [s["time"] for s in trace.read(path).samples] == [2]
    with pytest.raises(ValueError, match="closed"):
        writer.append({"time": 3})


def test_a_trace_is_followed_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    tail = TraceTail(path)
    assert list(tail.new()) == []
    path.write_bytes(b'{"time":1}\n{"time":2}\n{"ti')
    assert [s["time"] for s in tail.new()] == [1, 2]
    assert list(tail.new()) == []
    with path.open("ab") as file:
        file.write(b'me":3}\nnonsense\n{"time":4}\n')
    assert [s["time"] for s in tail.new()] == [3, 4]
    assert tail.unreadable_lines == 1
    path.write_bytes(b'{"time":9}\n')
    assert [s["time"] for s in tail.new()] == [9]
    late = TraceTail(path, from_end=True)
    assert list(late.new()) == []


def test_the_newest_is_found_without_reading_all(tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    assert trace.newest(path) is None
    assert trace.read(path).samples == ()
    with path.open("wb") as file:
        for at in range(20_000):
            file.write(trace.encode({"time": at, "padding": "x" * 200}) + b"\n")
        file.write(b'{"time":')
    began = time.perf_counter()
    assert trace.newest(path)["time"] == 19_999  # type: ignore[index]
    assert time.perf_counter() - began < 0.1


def test_how_much_a_day_takes() -> None:
    for sample, limit in ((cpu_sample(), 1200), (gpu_sample(), 1800)):
        size = len(trace.encode(sample)) + 1
        print(f"{size} bytes a sample, {size * 4 * 3600 / 2**20:.1f} MiB an hour at 4 Hz")
        assert size < limit


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    import threading

    path = tmp_path / "memory.jsonl"
    writer = TraceWriter(path)
    threads = [
        threading.Thread(
            target=lambda: [writer.append({"time": 1, "padding": "x" * 3000}) for _ in range(50)]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    until(lambda: not any(thread.is_alive() for thread in threads))
    writer.close()
    found = trace.read(path)
    assert (len(found.samples), found.unreadable_lines) == (200, 0)


def test_a_flipped_bit_anywhere_loses_the_line_or_none_of_its_numbers(tmp_path: Path) -> None:
    sample = {"time": 3.5, "torch": {"allocated_bytes": 1234567}, "name": "grün"}
    line = trace.encode(sample)
    for place in range(len(line)):
        for bit in range(8):
            spoiled = line[:place] + bytes([line[place] ^ (1 << bit)]) + line[place + 1 :]
            found = trace.decode(spoiled)
            assert found is None or found.items() >= sample.items()


def test_lines_of_older_runs_have_no_checksum() -> None:
    assert trace.decode(b'{"time":1,"a":2}') == {"time": 1, "a": 2}
