"""The real window with the real engine: offscreen, on a real X server, and killed in the middle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qlora_engine.models import catalog
from qlora_engine.runs.record import RunFolder, list_runs
from tests.support.starter import starter_folder

pytestmark = [pytest.mark.slow, pytest.mark.starter]

ROOT = Path(__file__).resolve().parents[2]
DRIVER = [sys.executable, "-m", "tests.e2e.drive_window"]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A home whose starter is converted already."""
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    source = catalog.starter_gguf()
    assert source is not None
    target = catalog.converted_dir(source)
    target.parent.mkdir(parents=True)
    target.symlink_to(starter_folder())
    return {**os.environ, "QT_QPA_PLATFORM": "offscreen", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def display() -> Iterator[str]:
    """A real X server without a screen."""
    program = shutil.which("Xvfb")
    if program is None:
        pytest.skip("Xvfb is not installed: apt-get install xvfb")
    read, write = os.pipe()
    server = subprocess.Popen(
        [program, "-displayfd", str(write), "-screen", "0", "1440x900x24", "-nolisten", "tcp"],
        pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(write)
    with os.fdopen(read) as told:
        number = told.readline().strip()
    assert number, "the X server did not start"
    yield f":{number}"
    server.terminate()
    server.wait(10)


def use_it(environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [*DRIVER, "whole"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def check(seen: dict[str, Any]) -> None:
    assert seen["state_after_stop"] == "stopped"
    assert 5 <= seen["stopped_at"] < 14
    assert seen["state"] == "finished"
    assert seen["steps"] == list(range(1, 15)), "a step was lost or shown twice over the resume"
    assert seen["after"] < 0.7 * seen["before"]
    assert seen["banner"].startswith("Finished. Held-out loss")
    assert seen["export"].startswith("Written and proven")
    assert seen["checks"] >= 8
    record = RunFolder(Path(seen["run_dir"])).record()
    assert record["state"] == "finished"


def test_a_person_trains_stops_resumes_and_exports(environment: dict[str, str]) -> None:
    check(use_it(environment))


def test_the_same_in_a_real_window(environment: dict[str, str], display: str) -> None:
    seen = use_it({**environment, "QT_QPA_PLATFORM": "xcb", "DISPLAY": display})
    assert seen["platform"] == "xcb"
    check(seen)


def test_killing_the_window_loses_nothing_and_leaves_no_orphan(environment: dict[str, str]) -> None:
    window = subprocess.Popen(
        [*DRIVER, "train"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert window.stdout is not None
    told: dict[str, Any] = {}
    for line in window.stdout:
        told = json.loads(line)
        if told["points"] >= 4:
            break
    engines = [
        p for p in psutil.Process(window.pid).children(recursive=True) if "worker" in " ".join(p.cmdline())
    ]
    assert engines
    os.kill(window.pid, signal.SIGKILL)
    window.wait()
    window.stdout.close()
    _, alive = psutil.wait_procs(engines, timeout=90)
    assert not alive, "the engine outlived its window"
    folder = RunFolder(Path(told["run_dir"]))
    assert folder.state() in ("stopped", "crashed")
    found = next(s for s in list_runs() if s.run_id == folder.run_id)
    assert found.is_resumable
    assert found.last_step is not None
    assert found.last_step >= told["points"], "the engine saves what it has when its window disappears"


def test_killing_the_engine_leaves_a_window_that_offers_to_go_on(environment: dict[str, str]) -> None:
    window = subprocess.Popen(
        [*DRIVER, "train"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert window.stdout is not None
    told: dict[str, Any] = {}
    for line in window.stdout:
        told = json.loads(line)
        if told["points"] >= 3:
            engine = next(
                p
                for p in psutil.Process(window.pid).children(recursive=True)
                if "worker" in " ".join(p.cmdline())
            )
            engine.kill()
            break
    rest = window.stdout.read()
    window.stdout.close()
    assert window.wait(60) == 0, "the window went down with its engine"
    assert rest
    deadline = time.monotonic() + 20
    while RunFolder(Path(told["run_dir"])).state() == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert RunFolder(Path(told["run_dir"])).state() == "crashed"
