"""Watching from outside: the stream's beat and end, and another run's engine with what it wrote down itself."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qlora_engine import monitor
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.errors import EngineError
from qlora_engine.monitor import attach
from qlora_engine.monitor.trace import TraceWriter
from qlora_engine.runs import ownership
from qlora_engine.runs.record import RunFolder
from tests.engine.monitor.conftest import until
from tests.engine.monitor.samples import GIB, cpu_sample, gpu_sample
from tests.support.fake_nvml import FakeDriver


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def engine_run(
    sleeper: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunFolder:
    """A run whose record names the sleeper as its engine."""
    monkeypatch.setenv("QLORA_HOME", str(tmp_path))
    folder = RunFolder.create(with_value(TrainingConfig(), "model.name", "a-model"))
    folder.update(state="running", **ownership.identity(sleeper.pid))
    return folder


def test_as_many_samples_as_asked_for(driver: FakeDriver) -> None:
    began = time.monotonic()
    found = list(monitor.stream(seconds=1.0, hz=10.0))
    assert time.monotonic() - began < 2.0
    assert 9 <= len(found) <= 10
    gaps = [b["time"] - a["time"] for a, b in itertools.pairwise(found)]
    assert sum(gaps) / len(gaps) == pytest.approx(0.1, rel=0.15)
    assert found[0]["gpus"][0]["used_bytes"] == 6 * GIB  # the first one waits for the driver


def test_a_slow_reader_gets_fresh_samples_not_old_ones(driver: FakeDriver) -> None:
    samples = monitor.stream(hz=50.0)
    next(samples)
    time.sleep(0.5)
    assert time.time() - next(samples)["time"] < 0.1
    samples.close()
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("nvml-")])


def test_a_stuck_driver_delays_the_first_sample_by_half_a_second_at_most(driver: FakeDriver) -> None:
    driver.hang("nvmlInitWithFlags")
    began = time.monotonic()
    found = list(monitor.stream(seconds=0.2, hz=10.0))
    assert time.monotonic() - began < 1.6
    assert found[0]["gpus"] == []
    assert found[0]["gpu_problem"] == "not read yet"


@pytest.mark.parametrize(
    ("seconds", "hz", "code"),
    [
        (None, 0.0, "monitor.hz"), (None, 101.0, "monitor.hz"), (None, float("nan"), "monitor.hz"),
        (0.0, 4.0, "monitor.seconds"), (float("inf"), 4.0, "monitor.seconds"), (float("nan"), 4.0, "monitor.seconds"),
    ],
)  # fmt: skip
def test_senseless_wishes(seconds: float | None, hz: float, code: str) -> None:
    with pytest.raises(EngineError) as caught:
        monitor.stream(seconds, hz)
    assert caught.value.code == code


def test_no_such_process(driver: FakeDriver) -> None:
    with pytest.raises(EngineError, match="no process"):
        monitor.stream(pid=2**22 + 5)


def test_a_watched_process_that_ends_ends_the_stream(
    driver: FakeDriver, sleeper: subprocess.Popen[bytes]
) -> None:
    samples = monitor.stream(hz=20.0, pid=sleeper.pid)
    first = next(samples)
    assert first["host"]["process_count"] == 1
    assert first["host"]["process_resident_bytes"] == pytest.approx(
        psutil.Process(sleeper.pid).memory_info().rss, rel=0.2
    )
    sleeper.kill()
    began = time.monotonic()
    rest = list(samples)  # none at all where its end is seen before the next sample is due
    assert all(sample["host"]["process_count"] in (1, None) for sample in rest)
    assert not rest or rest[-1]["host"]["process_count"] is None
    assert time.monotonic() - began < 3.0


def test_another_runs_engine_is_shown_with_its_own_figures(
    driver: FakeDriver, engine_run: RunFolder, sleeper: subprocess.Popen[bytes]
) -> None:
    driver.set_processes(0, [(sleeper.pid, 5 * GIB), (os.getpid(), GIB)])
    written = gpu_sample(time=time.time())
    writer = TraceWriter(engine_run.memory_path)
    writer.append({"time": 1.0, "paged": {"managed_bytes": 7}})
    writer.append(written)
    (sample,) = monitor.stream(seconds=0.1, hz=4.0, pid=sleeper.pid)
    assert sample["paged"] == {k: v for k, v in written["paged"].items() if v is not None}
    assert sample["torch"] == written["torch"]
    assert sample["parts"] == written["parts"]
    assert sample["unavailable"] == {}
    writer.close()


def test_an_engine_that_stopped_writing_is_not_believed(engine_run: RunFolder) -> None:
    told = attach.EngineTrace(engine_run.memory_path)
    assert told.block("parts") is None
    writer = TraceWriter(engine_run.memory_path)
    writer.append(cpu_sample(time=time.time() - attach.FRESH_SECONDS - 1))
    assert told.block("parts") is None
    writer.append(cpu_sample(time=time.time()))
    assert told.block("parts") == cpu_sample()["parts"]
    assert told.block("paged") is None
    writer.close()


def test_runs_are_found_by_their_engines_number(
    engine_run: RunFolder, sleeper: subprocess.Popen[bytes]
) -> None:
    found = attach.run_of_pid(sleeper.pid)
    assert found is not None
    assert found.path == engine_run.path
    assert attach.run_of_pid(os.getpid()) is None
    engine_run.update(state="finished")
    assert attach.run_of_pid(sleeper.pid) is None
