"""How much slower a run is while the window shows it: `make bench-window`.

A real window, on the Live tab, trains the starter; the window's process is stopped (SIGSTOP) and woken in turns of some seconds while
the engine goes on. Both ways are thus measured on one run, on the same data and at nearly the same time, by the engine's own figures
of its steps. Exit code 1 above the promised share. Not on Windows, which has no such signal.
"""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.bench import ui_gaps

PROMISED_SHARE = 0.03
TURNS, TURN_SECONDS, SETTLING_SECONDS = 24, 12.0, 2.0
READY_SECONDS = 240


@dataclass(frozen=True)
class Turn:
    """A time in which the window ran or was stopped, without its first seconds. Unix time."""

    has_window: bool
    begin: float
    end: float


def main(arguments: Sequence[str]) -> int:
    """Print the cost; 1 when it is more than promised."""
    if list(arguments[:1]) == ["--window"]:
        show(Path(arguments[1]))
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="qlora-bench-window-") as folder,
        shown_run(Path(folder)) as window,
    ):
        metrics = first_step(Path(folder), window)
        turns = taken_in_turns(window)
        steps = steps_of(metrics)
    pairs = speeds(steps, turns)
    shares = [1 - with_window / without for with_window, without in pairs]
    found = statistics.median(shares)
    print(f"{len(steps)} steps; tokens/s with the window and without, turn by turn:")
    print(", ".join(f"{a:.1f} / {b:.1f}" for a, b in pairs))
    print(f"The window takes {found:.1%} (median of {len(shares)}; {min(shares):.1%} to {max(shares):.1%}), promised at most {PROMISED_SHARE:.0%}")  # fmt: skip
    return 0 if found <= PROMISED_SHARE else 1


def show(folder: Path) -> None:
    """Open the window on its Live tab, start a long run of the starter, and stay."""
    from PySide6.QtWidgets import QApplication

    with ui_gaps.home_with_starter(folder), ui_gaps.window_of_its_own() as window:
        studio = window.studio
        ready = lambda: studio.workspace.data.report is not None and window.card.start.isEnabled()  # noqa: E731
        if not ui_gaps.wait(READY_SECONDS, ready):
            raise RuntimeError("the window was not ready to train")
        studio.workspace.job.edit("training.max_steps", 100_000)
        window.go_to("live")
        window.card.start.click()
        QApplication.exec()


@contextlib.contextmanager
def shown_run(folder: Path) -> Iterator[psutil.Process]:
    """The window's process; it and its engine are ended at last."""
    started = subprocess.Popen([sys.executable, "-m", "tests.bench.window_cost", "--window", str(folder)])
    window = psutil.Process(started.pid)
    try:
        yield window
    finally:
        for process in [*window.children(recursive=True), window]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        started.wait()


def first_step(folder: Path, window: psutil.Process) -> Path:
    """The run's metrics, once a step is in them."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and window.is_running() and window.status() != psutil.STATUS_ZOMBIE:
        for path in folder.glob("home/**/metrics.jsonl"):
            if steps_of(path):
                return path
        time.sleep(0.5)
    raise RuntimeError("the run did not begin")


def taken_in_turns(window: psutil.Process) -> list[Turn]:
    """Stop and wake the window by turns; a woken one has to catch up first, which is left out."""
    turns = []
    for number in range(2 * TURNS):
        has_window = number % 2 == 0
        window.send_signal(signal.SIGCONT if has_window else signal.SIGSTOP)
        time.sleep(SETTLING_SECONDS)
        begin = time.time()
        time.sleep(TURN_SECONDS)
        turns.append(Turn(has_window, begin, time.time()))
    window.send_signal(signal.SIGCONT)
    return turns


def steps_of(metrics: Path) -> list[dict[str, Any]]:
    """The steps that are told so far."""
    found = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            one = json.loads(line)
            if "step_seconds" in one:
                found.append(one)
    return found


def speeds(steps: Sequence[dict[str, Any]], turns: Sequence[Turn]) -> list[tuple[float, float]]:
    """Tokens a second (with the window, without it) of each pair of turns, of the steps that lie wholly inside."""

    def of(turn: Turn) -> float:
        inside = [
            s
            for s in steps
            if turn.begin <= s["unix_time"] - s["step_seconds"] and s["unix_time"] <= turn.end
        ]
        return float(sum(s["tokens"] for s in inside) / sum(s["step_seconds"] for s in inside))

    return [(of(a), of(b)) for a, b in zip(turns[0::2], turns[1::2], strict=True)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
