"""The real window with the real engine: offscreen, on a real X server, and killed in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from qlora_engine.models import catalog
from qlora_engine.monitor import trace
from qlora_engine.runs import queue
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.summary import list_runs
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


def use_it(environment: dict[str, str], way: str = "whole") -> dict[str, Any]:
    done = subprocess.run(
        [*DRIVER, way],
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


def command_of(process: psutil.Process) -> str:
    """Empty for one that has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Training:
    """A window with a run that goes on until somebody kills something."""

    def __init__(self, environment: dict[str, str], points: int, way: str = "train") -> None:
        self.environment = environment
        self.window = subprocess.Popen(
            [*DRIVER, way], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.window.stdout is not None
        for line in self.window.stdout:
            told = json.loads(line)
            self.points, self.folder = told["points"], RunFolder(Path(told["run_dir"]))
            if self.points >= points:
                break
        self.engine = psutil.Process(
            self.folder.record()["pid"]
        )  # others answer about data and memory beside it
        assert "worker" in command_of(self.engine)

    def end_of_window(self) -> int:
        """Wait for it, and read what it still says; its exit code."""
        self.window.communicate(timeout=60)
        return self.window.returncode

    def last_kept(self) -> int:
        """The step that the run goes on from."""
        found = next(s for s in list_runs() if s.run_id == self.folder.run_id)
        assert found.is_resumable
        assert found.state not in ("running", "paused")
        return int(self.folder.checkpoints()[-1].name.split("-")[1])

    def no_sample_is_lost_of(self, seen: tuple[dict[str, Any], ...], unreadable: int) -> None:
        """The memory trace begins with everything that was on disk at the kill; that is more than nothing."""
        found = trace.read(self.folder.memory_path)
        assert len(seen) > 3
        assert found.samples[: len(seen)] == seen
        assert found.unreadable_lines <= unreadable

    def take_the_offer(self) -> None:
        """The next start offers to resume; the run then has every step once."""
        seen = use_it(self.environment, "offered")
        assert self.folder.run_id in seen["offer"]
        assert seen["state"] == "finished"
        assert seen["steps"] == list(range(1, 15))


def test_killing_the_window_loses_nothing_and_the_next_start_offers_to_go_on(
    environment: dict[str, str],
) -> None:
    training = Training(environment, points=4)
    seen = trace.read(training.folder.memory_path).samples
    training.window.kill()
    training.end_of_window()
    _, alive = psutil.wait_procs([training.engine], timeout=90)
    assert not alive, "the engine outlived its window"
    assert training.last_kept() >= training.points, "the engine saves what it has when its window disappears"
    training.no_sample_is_lost_of(seen, unreadable=0)
    training.take_the_offer()


def test_killing_the_engine_loses_only_what_came_after_its_checkpoint(environment: dict[str, str]) -> None:
    training = Training(environment, points=5)
    seen = trace.read(training.folder.memory_path).samples
    training.engine.kill()
    assert training.end_of_window() == 0, "the window went down with its engine"
    assert training.points - 2 <= training.last_kept(), "a checkpoint is saved every two steps"
    training.no_sample_is_lost_of(seen, unreadable=1)  # the kill may come in mid-write
    training.take_the_offer()


def test_a_window_killed_during_a_run_of_the_queue_finds_every_point_again(
    environment: dict[str, str],
) -> None:
    training = Training(environment, points=2, way="queue")
    training.window.kill()
    training.end_of_window()
    assert training.engine.is_running(), "the run ended with the window that had queued it"
    seen = use_it(environment, "watch")
    assert seen["found"] in ("running", "finished")
    assert seen["drawn"] == list(range(1, 15)), "a step was lost or shown twice over the kill"
    assert [(done.run_dir, done.state) for done in queue.read().done] == [(training.folder.path, "finished")]
    assert queue.read().entries == ()
    psutil.wait_procs([training.engine], timeout=60)
