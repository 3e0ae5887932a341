"""Part 5: the tests that wait for a GPU, each a line as soon as it has ended. Imports pytest."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tests.gpu.offline import environment, report
from tests.gpu.offline.rig import Rig

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
FIRST = ("test_training.py", "test_memory.py", "test_monitor.py")
SECONDS_OF_A_TEST = 20
INI = "[pytest]\nmarkers =\n    gpu: needs an NVIDIA GPU\n    slow: takes more than ten seconds\n"
"""The project's own settings name plugins that a borrowed machine lacks, and fail on every warning of its versions."""


def run(rig: Rig) -> None:
    environment.identify(rig)
    if importlib.util.find_spec("pytest") is None:
        rig.tell(report.left_out("tests", "tests/gpu", "pytest cannot be imported"))
        return
    import pytest

    settings = rig.work / "pytest.ini"
    settings.write_text(INI, encoding="utf-8")
    others = sorted(path.name for path in HERE.glob("test_*.py") if path.name not in FIRST)
    files = [str(HERE / name) for name in (*FIRST, *others)]
    code = pytest.main(
        ["-m", "gpu", "-c", str(settings), "--rootdir", str(ROOT), "--import-mode=importlib", "-p", "no:cacheprovider",
         "-p", "no:randomly", "--basetemp", str(rig.work / "pytest"), "--tb=short", "-q", *files],
        plugins=[Teller(rig)],
    )  # fmt: skip
    rig.tell(report.checked("tests", "pytest came to its end", int(code) in (0, 1), f"exit code {int(code)}"))


class Teller:
    """Tells each test's end; skips what would begin too late."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    def pytest_runtest_setup(self, item: Any) -> None:
        import pytest

        if not self._rig.has_time(SECONDS_OF_A_TEST):
            pytest.skip("no time was left")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or (report.when == "setup" and not report.passed) or report.failed:
            self._rig.tell(line_of(report))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._rig.tell(line_of(report))


def line_of(ended: Any) -> report.Line:
    """A line of pytest's report on one test or file."""
    what = ended.nodeid.removeprefix("tests/gpu/")
    if ended.skipped:
        return report.left_out(f"tests.{what}", what, str(ended.longrepr[-1]))
    why = "" if ended.passed else ended.longreprtext[-700:]
    seconds = getattr(ended, "duration", 0.0)
    return report.checked(f"tests.{what}", what, ended.passed, why, measured=f"{seconds:.1f} s")
