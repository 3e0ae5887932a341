"""Who trains a run is told by a lock, whatever the clock says; and nobody else reads what it writes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.errors import EngineError
from qlora_engine.runs import claims, ownership
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.summary import summary_of

pytestmark = pytest.mark.skipif(os.name != "posix", reason="flock")
HOLD = """
import sys, time
from pathlib import Path
from qlora_engine.runs.record import RunFolder
RunFolder(Path(sys.argv[1])).claim()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(with_value(TrainingConfig(), "output.runs_dir", str(tmp_path / "runs")))


@pytest.fixture
def holder(folder: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Another process that trains the run."""
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_clock_step_gives_no_second_process_the_run(
    folder: RunFolder, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """psutil computes the moment of a process's start from the clock, so that it moves when the clock is set."""
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + 7200)
    assert RunFolder(folder.path).state() == "running"
    with pytest.raises(EngineError, match="is being trained by process") as caught:
        RunFolder(folder.path).claim()
    assert caught.value.code == "run.busy"
    assert str(holder.pid) in caught.value.message


@pytest.mark.skipif(sys.platform != "linux", reason="ticks since boot")
def test_with_its_lock_file_deleted_the_run_still_has_its_owner(
    folder: RunFolder, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: real(self) + 7200)
    (folder.path / "run.lock").unlink()
    assert folder.state() == "running"
    with pytest.raises(EngineError, match="is being trained"):
        RunFolder(folder.path).claim()


def test_a_record_lost_under_its_owner_gives_it_to_nobody_else(
    folder: RunFolder, holder: subprocess.Popen[str]
) -> None:
    assert claims.is_owned(folder.path, {})


def test_a_dead_owner_leaves_the_run_to_others(folder: RunFolder, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert folder.state() == "crashed"
    folder.claim()
    assert folder.state() == "running"
    folder.release()


def test_a_process_of_another_boot_is_not_this_one(folder: RunFolder) -> None:
    folder.update(state="running", **{**ownership.identity(os.getpid()), "boot": "another"})
    assert folder.state() == "crashed"


def test_on_a_network_drive_what_cannot_be_told_is_said(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "file_system", lambda _: "nfs4")
    there = {"pid": 1, "pid_started": 1.0, "boot": "another", "host": "tower"}
    folder.update(state="running", **there)
    assert folder.state() == "running"
    assert "whether it still runs cannot be told from here" in summary_of(folder).notices[0]
    with pytest.raises(EngineError, match="it cannot be told whether it still runs") as caught:
        folder.claim()
    assert "--accept owner" in caught.value.hint
    assert "nfs4" in folder.claim(even_elsewhere=True)
    folder.release()


def test_a_file_system_without_locks_is_said(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(ownership, "_try_lock", none)
    assert "has no locks" in folder.claim()
    assert folder.state() == "running"


def test_a_planned_run_is_its_owner_s_alone_before_anyone_claims_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = RunFolder.create(
            with_value(TrainingConfig(), "output.runs_dir", str(tmp_path / "runs")), "planned"
        )
    finally:
        os.umask(before)
    for path in (folder.path, *folder.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_new_run_is_its_owner_s_alone(folder: RunFolder) -> None:
    folder.claim()
    folder.release()
    for path in (folder.path, *folder.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
