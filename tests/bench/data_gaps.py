"""How long the window's event loop is held up while it reads a large file of data, and when the first rows are seen.

`make bench-data-window`, or `python -m tests.bench.data_gaps [--rows 20000] [--json]`. Opens the real window (offscreen where there is no
display) on the starter, chooses a file of made conversations, and notes how late the event loop comes back until the
report is there. Exit code 1 when a gap is above 100 ms, their 99th percentile above 30 ms, or the first rows come later
than after two seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import data_speed
from tests.bench.ui_gaps import (
    MOST_MS,
    READY_SECONDS,
    Beat,
    Gaps,
    LongGap,
    home_with_starter,
    wait,
    window_of_its_own,
)

if TYPE_CHECKING:
    from app.window import MainWindow

FIRST_ROWS_SECONDS = 2.0
LONGEST_SECONDS = 3600


@dataclass(frozen=True)
class Report:
    rows: int
    first_rows_seconds: float
    """From the choice of the file until its rows are in the table of the preview."""
    gaps: Gaps
    long_gaps: tuple[LongGap, ...]

    @property
    def is_kept(self) -> bool:
        return self.gaps.is_kept and self.first_rows_seconds <= FIRST_ROWS_SECONDS


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.data_gaps", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--json", action="store_true", help="print JSON instead of words")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="qlora-bench-data-") as name:
        folder = Path(name)
        data_speed.write_rows(folder / "rows.jsonl", chosen.rows)
        with home_with_starter(folder), window_of_its_own() as window:
            report = measured(window, folder / "rows.jsonl", chosen.rows)
    print(json.dumps(asdict(report)) if chosen.json else words(report))
    return 0 if report.is_kept else 1


def measured(window: MainWindow, path: Path, rows: int) -> Report:
    """Choose the file on its page and wait for the report.

    Raises:
        RuntimeError: the report did not come.
    """
    work = window.studio.workspace
    ready = wait(READY_SECONDS, lambda: work.data.report is not None)
    window.go_to("data")
    source = window.tabs.controllers["data"].page.tabs["source"]
    if not ready or not wait(30, lambda: source._preview is not None):
        raise RuntimeError("the window was not ready")
    beat, began = Beat(), time.perf_counter()
    beat.start()
    work.job.choose_data(str(path))
    wait(
        60,
        lambda: source._seen is not None and source._seen.path == str(path) and source._preview is not None,
    )
    first = time.perf_counter() - began
    wait(LONGEST_SECONDS, lambda: work.data.report is not None or work.data.error is not None)
    wait(2, lambda: False)  # what the report paints
    beat.stop()
    seconds = time.perf_counter() - began
    if work.data.report is None or work.data.report["train_rows"] <= rows // 2:
        raise RuntimeError(f"the report did not come: {work.data.error}")
    return Report(rows, round(first, 2), Gaps.of(beat.beats, seconds), tuple(beat.long))


def words(report: Report) -> str:
    gaps = report.gaps
    first = (
        f"{report.rows:,} rows in {gaps.seconds:.0f} s: first rows after {report.first_rows_seconds:.2f} s (limit {FIRST_ROWS_SECONDS:.0f}), "
        f"longest gap {gaps.most_ms} ms (limit {MOST_MS:.0f}; {gaps.most_own_ms} without waiting for a processor), 99th percentile "
        f"{gaps.percentile_99_ms} ms"
    )
    lines = [
        first,
        *(
            f"- {gap.late_ms:.0f} ms after {gap.at_seconds:.0f} s, {gap.waited_ms:.0f} ms of it waiting for a processor"
            for gap in report.long_gaps
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
