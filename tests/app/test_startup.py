"""What the window costs before it can be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.pace import limit

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
window.tabs.screens["model"].siblings._buttons["memory"].click()
app.processEvents()
took = time.perf_counter() - began
heavy = sorted(set({heavy!r}) & set(sys.modules))
print(took, window.tabs.current, *heavy)
window.studio.close()
"""

SETTLE = """
import json, pathlib, sys, threading, time
elsewhere, windows = set(), set()
def hear(event, told):
    if event == "import" and threading.current_thread() is not threading.main_thread():
        elsewhere.add(told[0])
sys.addaudithook(hear)
from PySide6.QtCore import QEvent, QObject
from PySide6.QtWidgets import QWidget
from app.main import make_application, make_window
from app.tabs import all_tabs
class Watch(QObject):
    def eventFilter(self, watched, event):
        if event.type() == QEvent.Type.Show and isinstance(watched, QWidget) and watched.isWindow():
            windows.add(type(watched).__name__)
        return False
app, watch = make_application(["qlora-studio"]), Watch()
app.installEventFilter(watch)
window = make_window(app)
window.show()
window.load()
until = time.monotonic() + 60
def is_settled():
    return {tab.name for tab in all_tabs()} <= set(window.tabs.screens) and window.tabs.screens["live"].charts is not None
while not is_settled() and time.monotonic() < until:
    app.processEvents()
from PySide6.QtGui import QColor, QImage, QPainter
large = QImage(1500, 1500, QImage.Format.Format_ARGB32_Premultiplied)
painter = QPainter(large)
painter.fillRect(large.rect(), QColor(1, 2, 3, 90))
painter.end()
names = [path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
print(json.dumps({"settled": is_settled(), "elsewhere": sorted(elsewhere), "windows": sorted(windows), "threads": names}))
window.studio.close()
"""


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened until all pages and charts of a window were made."""
    home = tmp_path_factory.mktemp("home")
    return json.loads(run(SETTLE, home))  # type: ignore[no-any-return]


def run(script: str, home: Path) -> str:
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen", "QLORA_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True, timeout=120,
        env=environment,
    )  # fmt: skip
    return done.stdout


def open_window(home: Path) -> list[str]:
    return run(OPEN.format(heavy=HEAVY), home).split()


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
    assert min(float(found[0]) for found in opened) < limit(LIMIT_SECONDS, time.perf_counter)


def test_only_the_gui_thread_is_the_first_to_use_qt(settled: dict[str, Any]) -> None:
    """Shiboken's table of classes is read without a lock: a class made in another thread crashes the window, rarely."""
    assert settled["settled"]
    assert "numpy.linalg" in settled["elsewhere"], "half of the chart library is imported in a pool thread"
    with_qt = ("PySide6", "shiboken6", "pyqtgraph", "app")
    assert [name for name in settled["elsewhere"] if name.split(".")[0] in with_qt] == []


def test_no_part_of_a_page_flashes_up_as_a_window_of_its_own(settled: dict[str, Any]) -> None:
    assert settled["windows"] == ["MainWindow"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are named in /proc")
def test_no_threads_are_woken_to_paint(settled: dict[str, Any]) -> None:
    """Qt's pool shares out large fills: some hundred wakings a second beside a run on the same processors."""
    assert settled["threads"]
    assert [name for name in settled["threads"] if "pooled" in name] == []


ENDED = """
import gc
from PySide6.QtCore import QCoreApplication
from app.services.collector import Collector
app = QCoreApplication([])
collector = Collector()
class Knot: pass
knot = Knot()
knot.self = knot
del knot
collector.stop()
print(gc.isenabled(), sum(isinstance(found, Knot) for found in gc.get_objects()))
"""


def test_collection_never_begins_by_itself_again(home: Path) -> None:
    """Begun while Qt destroys an object it waited for ever, now and then, when a window's program ended."""
    assert run(ENDED, home).split() == ["False", "0"]
