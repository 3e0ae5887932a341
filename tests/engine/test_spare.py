"""A worker that waits with everything imported: who gets it, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qlora_engine import child, jobs, launch, prepared
from qlora_engine.client import ProcessEngine
from qlora_engine.events import RunFailed
from qlora_engine.spare import SERVES, Spare

ROOT = Path(__file__).resolve().parents[2]
ECHO = """
import sys
for line in sys.stdin:
    if "prepare" not in line:
        print('{"event": "RunFailed", "code": "heard", "message": "' + str(line.count("TrainJob")) + '", "hint": ""}', flush=True)
        break
"""
TRAIN = jobs.TrainJob({})


@pytest.fixture
def spare(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spare]:
    monkeypatch.setattr(launch, "worker_command", lambda: [sys.executable, "-P", "-c", ECHO])
    found = Spare()
    yield found
    found.end()


def waiting_of(spare: Spare) -> psutil.Process:
    assert spare._waiting is not None
    return psutil.Process(spare._waiting.process.pid)


def test_a_run_is_given_to_the_worker_that_waits_and_the_next_to_a_new_one(spare: Spare) -> None:
    spare.prepare()
    pid = waiting_of(spare).pid
    spare.prepare()
    assert waiting_of(spare).pid == pid, "one is enough"
    engine = ProcessEngine(spare)
    last = list(engine.run(TRAIN))[-1]
    assert isinstance(last, RunFailed)
    assert (last.code, last.message, engine.pid) == ("heard", "1", pid)
    assert not spare.is_waiting
    other = ProcessEngine(spare)
    assert list(other.run(TRAIN))[-1] == last
    assert other.pid != pid


def test_a_job_that_needs_little_leaves_it_waiting(spare: Spare) -> None:
    spare.prepare()
    assert spare.take(jobs.DataReportJob({})) is None
    assert spare.is_waiting
    assert set(SERVES) < {*jobs._HANDLERS}


def test_one_that_was_started_for_another_home_is_not_used(
    spare: Spare, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spare.prepare()
    before = waiting_of(spare)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert spare.take(TRAIN) is None
    assert not before.is_running()
    spare.prepare()
    monkeypatch.chdir(tmp_path)
    assert spare.take(TRAIN) is None


def test_one_that_died_is_replaced(spare: Spare) -> None:
    spare.prepare()
    waiting_of(spare).kill()
    waiting_of(spare).wait(10)
    assert not spare.is_waiting
    assert spare.take(TRAIN) is None
    spare.prepare()
    assert spare.is_waiting
    folder = spare._waiting.folder.name  # type: ignore[union-attr]
    spare.end()
    assert not spare.is_waiting
    assert not Path(folder).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of POSIX")
def test_it_ends_with_whoever_started_it() -> None:
    code = (
        "import time; from qlora_engine.spare import Spare\n"
        "spare = Spare(); spare.prepare()\n"
        "print(spare._waiting.process.pid, flush=True); time.sleep(60)"
    )
    driver = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=child.environment(),
    )
    assert driver.stdout is not None
    worker = psutil.Process(int(driver.stdout.readline()))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    until = time.monotonic() + 60
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.1)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_the_real_one_imports_what_a_run_needs_and_answers() -> None:
    spare = Spare()
    spare.prepare()
    engine = ProcessEngine(spare)
    began = list(
        engine.run(jobs.TrainJob({"model": {"name": "/nowhere"}, "output": {"runs_dir": "/proc/none"}}))
    )
    assert isinstance(began[-1], RunFailed)
    assert began[-1].code != "engine.died"


def test_where_torch_knows_gpus_nothing_is_imported_that_asks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    seen: list[str] = []
    monkeypatch.setattr(prepared, "_import", seen.append)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    prepared.import_all()
    assert set(seen) == set(prepared.ANYWHERE)
    monkeypatch.setattr(torch.version, "cuda", None)
    prepared.import_all()
    assert {*seen} == {*prepared.ANYWHERE, *prepared.WITHOUT_GPU}
    code = f"import sys\nfor name in {prepared.ANYWHERE!r}: __import__(name)\nassert 'bitsandbytes' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=ROOT, env=child.environment())
