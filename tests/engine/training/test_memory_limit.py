"""An engine whose memory the system really limits: it fails to allocate, takes less, and trains the same numbers."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_engine import child

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="limits what a process may write to, as Linux and glibc count it",
)
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(600)
def test_a_computer_with_too_little_memory_trains_with_a_smaller_micro_batch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.limited_memory", str(tmp_path)],
        cwd=ROOT, env=child.environment(), capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ended"] == []
    assert (
        found["said"][0] == "Out of memory: micro-batch 8 -> 4, the effective batch stays the same; going on"
    )
    assert found["kept"] < 8
    assert found["losses"] == found["losses_with_fewer"]
    assert len(found["losses"]) == 2
