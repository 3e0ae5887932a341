"""How long the window's event loop is held up while a result is tried: chat of two runs, replay, held-out rows.

`python -m tests.bench.try_gaps RUN OTHER [--json]`, with the names or folders of two finished runs of one base. Opens
the real window (offscreen where there is no display) with the default engine; held-out rows are scored for a minute at
most, and then stopped. Exit code 1 when a gap is above 100 ms or their 99th percentile above 30 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tests.bench.ui_gaps import Beat, Gaps

if TYPE_CHECKING:
    from app.window import MainWindow

QUESTION = "Remind me to polish the boots at half past eight."
LOAD_SECONDS, ANSWER_SECONDS, SCORE_SECONDS, STOP_SECONDS = 240, 240, 60, 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("other")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen" if not os.environ.get("DISPLAY") else "xcb")
    report = measure(chosen.run, chosen.other)
    if chosen.json:
        print(json.dumps(report, indent=1))
    else:
        for name, found in report["gaps"].items():
            print(f"{name:10} longest {found['most_ms']:6.1f} ms, 99th percentile {found['percentile_99_ms']:5.1f} ms, {found['seconds']:.0f} s")  # fmt: skip
        print(
            f"stopped a scoring in {report['stop_seconds']:.2f} s, an answer in {report['interrupt_seconds']:.2f} s"
        )
    return 0 if report["is_kept"] else 1


def measure(run: str, other: str) -> dict[str, Any]:
    from PySide6.QtWidgets import QApplication

    from app import theme
    from app.services.collector import Collector
    from app.services.settings import SettingsFile
    from app.studio import Studio
    from app.window import MainWindow
    from qlora_engine.runs.record import RunFolder

    app = QApplication.instance() or QApplication(sys.argv)
    assert isinstance(app, QApplication)
    theme.load_fonts()
    theme.apply(app, "dark")
    collector = Collector()
    studio = Studio(SettingsFile())
    window = MainWindow(studio)
    window.show()
    window.load()
    wait(lambda: studio.history.is_read and "files" in window.tabs.controllers, 60)
    wait_idle(5)  # the charts are made in turns
    try:
        return tried(window, *(str(RunFolder.open(name).path) for name in (run, other)))
    finally:
        studio.close()
        collector.stop()


class Trial:
    """What is done with a run and another of its base, act by act; the seconds until a Stop was heard."""

    def __init__(self, window: MainWindow, run: str, other: str) -> None:
        self._window, self._run, self._other = window, run, other
        self._page, self._screen = window.tabs.controllers["chat"], window.tabs.screens["chat"]
        self._rows, self._panel = (
            window.tabs.controllers["held_out"].held_out,
            window.tabs.screens["held_out"].held_out,
        )
        self.interrupt_seconds = self.stop_seconds = 0.0

    def load(self) -> None:
        chat, compare = self._page.chats, self._screen.chat.compare
        self._window.open_run(self._run, "chat")
        wait(lambda: self._other in compare.entries, 30)
        compare.entries[self._other].trigger()
        chat.load()
        wait(lambda: len(chat.chat.sides) == 3 and chat.chat.can_ask, LOAD_SECONDS)

    def chat(self) -> None:
        ask(self._screen)
        wait(lambda: self._page.chats.chat.can_ask, ANSWER_SECONDS)

    def cut(self) -> None:
        """An answer that is interrupted once it has begun."""
        chats = self._page.chats
        ask(self._screen)
        wait(lambda: any(chats.chat.exchanges[-1].answers.values()), ANSWER_SECONDS)
        began = time.perf_counter()
        self._screen.chat.interrupt.click()
        wait(lambda: chats.chat.can_ask, STOP_SECONDS)
        self.interrupt_seconds = time.perf_counter() - began

    def replay(self) -> None:
        self._screen.sets.again.setChecked(True)
        self._page.sets.replay()
        wait(lambda: self._page.sets.fold.state != "running", ANSWER_SECONDS)

    def score(self) -> None:
        """Held-out rows for a minute at most, then a Stop."""
        rows = self._rows
        rows.score()
        wait(lambda: rows.fold.phase_text.startswith("Scoring") and bool(rows.fold.share), LOAD_SECONDS)
        until = time.monotonic() + SCORE_SECONDS
        wait(lambda: rows.fold.state != "running" or time.monotonic() > until, SCORE_SECONDS + 5)
        began = time.perf_counter()
        self._panel.working.stop.click()
        wait(lambda: rows.fold.state != "running", STOP_SECONDS)
        self.stop_seconds = time.perf_counter() - began


def tried(window: MainWindow, run: str, other: str) -> dict[str, Any]:
    """Everything once, each part with its own gaps."""
    trial = Trial(window, run, other)
    gaps = {
        act.__name__: timed(act) for act in (trial.load, trial.chat, trial.cut, trial.replay, trial.score)
    }
    return {
        "gaps": {name: asdict(found) for name, found in gaps.items()},
        "interrupt_seconds": trial.interrupt_seconds,
        "stop_seconds": trial.stop_seconds,
        "is_kept": all(found.is_kept for found in gaps.values()),
    }


def timed(act: Callable[[], None]) -> Gaps:
    """How the event loop was held up meanwhile."""
    beat, began = Beat(), time.perf_counter()
    beat.start()
    act()
    beat.stop()
    return Gaps.of(beat.beats, time.perf_counter() - began)


def ask(screen: Any) -> None:
    screen.chat.asked.emit(QUESTION)


def wait(is_done: Callable[[], bool], seconds: float) -> None:
    """Let the event loop turn until `is_done`.

    Raises:
        TimeoutError: it took too long.
    """
    from PySide6.QtTest import QTest

    until = time.monotonic() + seconds
    while not is_done():
        if time.monotonic() > until:
            raise TimeoutError(f"not done within {seconds} s")
        QTest.qWait(20)


def wait_idle(seconds: float) -> None:
    from PySide6.QtTest import QTest

    QTest.qWait(int(1000 * seconds))


if __name__ == "__main__":
    sys.exit(main())
