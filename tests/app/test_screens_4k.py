"""The screens of `test_screens.py` on a 4K screen at 200 %, in a process of its own: Qt takes its scale once, as it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCREEN = {"name": "4K", "x": 0, "y": 0, "width": 3840, "height": 2160, "logicalDpi": 96, "dpr": 1}
TOUR = "tests/app/test_screens.py::test_nothing_is_cut_off_covered_or_outside"
HOURS = 2


@pytest.mark.timeout(HOURS * 3600 + 60)
def test_on_a_4k_screen_at_twice_the_size(tmp_path: Path) -> None:
    screens = tmp_path / "screens.json"
    screens.write_text(json.dumps({"screens": [SCREEN]}), encoding="utf-8")
    scaled = {"QT_QPA_PLATFORM": f"offscreen:configfile={screens}", "QT_SCALE_FACTOR": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout", str(HOURS * 3600), TOUR],
        cwd=ROOT, env={**os.environ, **scaled}, capture_output=True, text=True, check=False, timeout=HOURS * 3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.splitlines()[-1], done.stdout[-2000:]
