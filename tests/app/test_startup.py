"""What the window costs before it can be used."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch", "transformers", "peft", "datasets", "bitsandbytes", "accelerate", "safetensors", "numpy", "pyqtgraph",
    "huggingface_hub", "gguf", "pandas", "pyarrow",
)  # fmt: skip
LIMIT_SECONDS = 1.0

OPEN = """
import sys, time
began = time.perf_counter()
from app.main import make_application, make_window
app = make_application(["qlora-studio"])
window = make_window(app)
window.show()
app.processEvents()
window.rail.items["memory"].click()
app.processEvents()
took = time.perf_counter() - began
heavy = sorted(set({heavy!r}) & set(sys.modules))
print(took, window.pages.current, *heavy)
window.studio.close()
"""


def open_window(home: Path) -> list[str]:
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "QLORA_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", OPEN.format(heavy=HEAVY)], capture_output=True, text=True, cwd=ROOT, check=True,
        timeout=120, env=environment,
    )  # fmt: skip
    return done.stdout.split()


def test_importing_the_window_pulls_in_nothing_heavy() -> None:
    script = f"import sys, app.main; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    assert done.stdout.split() == []


def test_the_window_answers_within_a_second_without_the_ml_stack(home: Path) -> None:
    open_window(home)
    opened = [open_window(home) for _ in range(5)]
    assert all(found[1:] == ["memory"] for found in opened)
    assert statistics.median(float(found[0]) for found in opened) < LIMIT_SECONDS
