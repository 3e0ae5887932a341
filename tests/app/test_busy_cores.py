"""The window answers while a run keeps all cores busy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUIET_CORES = 0.1


@pytest.mark.slow
@pytest.mark.starter
def test_the_window_answers_while_a_run_keeps_all_cores_busy() -> None:
    """What `make bench-ui` measures, for half a minute. Where other programs take the processor too, only what the
    window itself does counts."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.ui_gaps", "--seconds", "30", "--json"],
        capture_output=True, text=True, cwd=ROOT, timeout=580,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    whole = found["whole"]
    assert found["steps"] >= 1
    assert found["samples_drawn"] >= 60
    assert whole["beats"] > 500
    assert done.returncode == (0 if found["is_kept"] else 1)
    is_quiet = found["other_programs_cores"] < QUIET_CORES
    # Beside other programs the same work takes more of the processor's time: caches are cold after each of their turns.
    assert whole["most_own_ms"] <= (100 if is_quiet else 200), found
    if is_quiet:
        assert found["is_kept"], found
