"""A day's work by the keyboard alone, in the real window with the real engine: on an X server where there is one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.runs.record import RunFolder
from tests.support.tiny import make_tiny
from tests.support.tiny_runs import data_file, varied_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ROWS = 60
STEPS = 150


@pytest.fixture
def work_day(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """The command, and the environment of a home with one tiny model in it."""
    home = tmp_path / "home"
    make_tiny("llama", home / "models" / "tiny-llama")
    rows = data_file(tmp_path, ROWS)
    command = [sys.executable, "-m", "tests.e2e.keyboard_day", "tiny-llama", str(rows)]
    hub = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_CACHE": str(tmp_path / "hub" / "hub")}
    return command, {**os.environ, **hub, "QLORA_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def seen_in(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


@pytest.fixture
def platform(request: pytest.FixtureRequest) -> dict[str, str]:
    """An X server's, else none that can be seen."""
    if shutil.which("Xvfb") is None:
        return {"QT_QPA_PLATFORM": "offscreen"}
    return {"QT_QPA_PLATFORM": "xcb", "DISPLAY": request.getfixturevalue("display")}


def test_a_day_by_keys_alone(
    work_day: tuple[list[str], dict[str, str]], platform: dict[str, str], tmp_path: Path
) -> None:
    command, environment = work_day
    seen = seen_in(command, {**environment, **platform})
    assert seen["platform"] == platform["QT_QPA_PLATFORM"]
    check(seen, tmp_path)


def check(seen: dict[str, Any], folder: Path) -> None:
    """What the window showed, and what is on the disk."""
    assert seen["model"] == str(folder / "home" / "models" / "tiny-llama")
    assert (seen["rows"], varied_rows(3)[2]["instruction"] in seen["row"]) == (ROWS, True)
    assert seen["rank"] > 4
    assert seen["needs"][1] > seen["needs"][0]
    assert seen["paused_at"][0] == seen["paused_at"][1], "it trained on while it was paused"
    assert seen["stopped"] == "stopped"
    assert 10 < seen["stopped_at"] < STEPS
    assert seen["steps"] == list(range(1, STEPS + 1)), "a step was lost or shown twice"
    first, second = (RunFolder(Path(run)) for run in seen["runs"])
    assert [run.record()["state"] for run in (first, second)] == ["finished", "finished"]
    assert seen["tab"] == "compare"
    assert set(seen["compared"]) == set(seen["runs"])
    assert "lora.rank" in seen["differs"]
    assert set(seen["answers"]) == {"base", "tuned"}
    assert seen["export"].startswith("Written and proven")
    assert any(Path(seen["target"]).glob("*.safetensors"))
