"""A day's work in the real window with the real engine, by keys alone: `python -m tests.e2e.keyboard_day MODEL ROWS`.

Picks the model of that title, looks at the rows of the file, asks what a higher rank takes, trains, pauses, goes on, stops,
resumes, trains another, compares both, chats and exports. Prints as JSON what was seen; ends with 1 where a key led nowhere.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import (
    QAbstractButton,
    QApplication,
    QLineEdit,
    QListWidget,
    QMessageBox,
    QPlainTextEdit,
    QSlider,
)

from app.window import MainWindow
from qlora_engine.config import all_knobs
from tests.support.hands import CTRL, KEY, SHIFT, Hands
from tests.support.real_window import real_window

STEPS = 150
WAIT_SECONDS = 120.0
ANSWER_TOKENS = "12"


class Day:
    """Reads what the window shows; acts with `hands` alone."""

    def __init__(self, window: MainWindow, model: str, rows: str) -> None:
        self.window, self.model, self.rows = window, model, rows
        self.hands = Hands()
        self.work, self.shown = window.studio.workspace, window.studio.shown
        self.trainer, self.screens = window.studio.trainer, window.tabs.screens
        self.seen: dict[str, Any] = {"seconds": {}}
        QGuiApplication.instance().focusWindowChanged.connect(self.manage)  # type: ignore[union-attr]

    def until(self, what: str, is_so: Callable[[], object]) -> None:
        loop, timer = QEventLoop(), QTimer(interval=10)
        end = time.monotonic() + WAIT_SECONDS
        timer.timeout.connect(lambda: loop.quit() if is_so() or time.monotonic() > end else None)
        timer.start()
        loop.exec()
        timer.stop()
        has_keys = QGuiApplication.focusWindow()
        assert is_so(), (
            f"waited in vain for {what}; banner: {self.window.banner.text!r}; keys go to {has_keys}"
        )

    def manage(self, _: object) -> None:
        """The window manager's part, which no bare X server has: after a dialog the window has the keyboard again."""
        QTimer.singleShot(20, lambda: QGuiApplication.focusWindow() is None and self.window.activateWindow())

    def has_keyboard(self) -> bool:
        """A window manager that was busy gives it a moment later."""
        if QGuiApplication.focusWindow() is None:
            self.window.activateWindow()
        return QApplication.focusWidget() is not None

    def answer(self) -> None:
        """The next question, by Enter: its default."""
        timer = QTimer(self.window, interval=50)

        def look() -> None:
            box = QApplication.activeModalWidget()
            if (
                isinstance(box, QMessageBox)
                and box.isActiveWindow()
                and QGuiApplication.focusWindow() is box.windowHandle()
            ):
                timer.stop()
                self.hands.press(KEY.Key_Return)

        timer.timeout.connect(look)
        timer.start()

    def enter(self, path: str, text: str) -> None:
        """A value into the field of an option."""
        self.hands.tab_to(all_knobs()[path].label, QLineEdit)
        self.hands.press(KEY.Key_A, CTRL)
        self.hands.type(text)
        self.hands.press(KEY.Key_Tab)

    def needs(self) -> int:
        """Bytes at the peak."""
        own = self.work.memory.own
        return 0 if own is None else own.bar("double_quant").device_likely

    def begin(self) -> None:
        self.until("it to be startable", lambda: self.window.run_card.can_start)
        self.hands.press(KEY.Key_Return, CTRL)
        self.until("the run to begin", lambda: self.trainer.is_running)
        self.until("its first point", lambda: self.points() > 0)

    def finish(self) -> None:
        self.until("the end", lambda: not self.trainer.is_running)
        assert self.trainer.run.state == "finished", self.window.banner.text
        folder = self.trainer.run.run_dir
        self.seen.setdefault("runs", []).append(folder)
        self.until("it to be listed", lambda: self.window.studio.history.find_in(folder or "") is not None)

    def points(self) -> int:
        return len(self.trainer.run.series["loss"])


def pick(day: Day) -> None:
    """The tiny model, from the list of those on this computer."""
    day.until("the list of models", lambda: bool(day.work.base.models))
    day.hands.press(KEY.Key_1, CTRL)
    found = day.hands.tab_to("Models on this computer", QListWidget)
    assert isinstance(found, QListWidget)
    day.hands.press(KEY.Key_Home)
    for _ in range(found.count()):
        if found.currentItem().text().startswith(day.model):
            break
        day.hands.press(KEY.Key_Down)
    day.hands.press(KEY.Key_Return)
    day.until("its facts", lambda: day.work.base.facts is not None)
    day.seen["model"] = day.work.job.config.model.name


def inspect(day: Day) -> None:
    """Where the rows are, what was found of them, and the third row."""
    day.hands.press(KEY.Key_2, CTRL)
    day.hands.tab_to("Dataset", QLineEdit)
    day.hands.press(KEY.Key_A, CTRL)
    day.hands.type(day.rows)
    day.hands.press(KEY.Key_Return)
    day.until("it to be chosen", lambda: day.work.job.config.data.path == day.rows)
    day.until("a report", lambda: day.work.data.report is not None)
    day.hands.tab_to("Source", QAbstractButton, key=KEY.Key_Backtab)
    day.hands.press(KEY.Key_Right)
    panel = day.screens["data"].panels["rows"]
    day.until("the rows", lambda: panel.list.rows.total > 0)
    day.hands.tab_to("Rows of the data")
    day.hands.press(KEY.Key_Home)
    day.hands.press(KEY.Key_Down, times=2)
    day.until("the third row", lambda: "row 3" in panel.where.text().lower())
    day.seen["row"] = panel.raw.toPlainText()
    day.seen["rows"] = panel.list.rows.total


def set_up(day: Day) -> None:
    """A short recipe."""
    day.hands.press(KEY.Key_3, CTRL)
    day.enter("lora.rank", "4")
    day.enter("training.max_steps", str(STEPS))
    day.enter("training.eval_every_steps", str(STEPS // 2))
    day.hands.tab_to("Show all options", QAbstractButton)
    day.hands.press(KEY.Key_Space)
    day.enter("training.end_rows", "0")
    day.enter("training.sample_tokens", "4")


def estimate(day: Day) -> None:
    """What a higher rank takes."""
    day.hands.press(KEY.Key_4, CTRL)
    day.until("the memory", lambda: day.work.memory.own is not None)
    rank, before = day.work.job.config.lora.rank, day.needs()
    day.hands.tab_to("Rank", QSlider)
    day.hands.press(KEY.Key_Right)
    day.until("a higher rank", lambda: day.work.job.config.lora.rank > rank)
    day.until("what it takes", lambda: day.needs() > before)
    day.seen |= {"rank": day.work.job.config.lora.rank, "needs": [before, day.needs()]}


def train(day: Day) -> None:
    """Start, pause, go on, stop."""
    day.begin()
    day.until("five points", lambda: day.points() >= 5)
    day.hands.press(KEY.Key_P, CTRL)
    day.until("it to pause", lambda: day.trainer.run.state == "paused")
    paused = day.points()
    pause_ends = time.monotonic() + 0.5
    day.until("half a second to go by", lambda: time.monotonic() > pause_ends)
    day.seen["paused_at"] = [paused, day.points()]
    day.hands.press(KEY.Key_P, CTRL)
    day.until("it to go on", lambda: day.points() > paused + 5)
    day.answer()
    day.hands.find("stop the run")
    day.until("it to stop", lambda: not day.trainer.is_running)
    day.seen |= {"stopped": day.trainer.run.state, "stopped_at": day.trainer.run.step}


def resume(day: Day) -> None:
    """To its end."""
    day.until("the window to have the keyboard", day.has_keyboard)
    day.until("it to be resumable", lambda: day.window.head.primary.text() == "Resume")
    day.hands.find("resume")
    day.until("it to go on", lambda: day.trainer.is_running)
    day.finish()
    day.seen["steps"] = [int(x) for x in day.trainer.run.series["loss"].x]


def train_another(day: Day) -> None:
    """The same with a higher rank."""
    day.hands.find("duplicate")
    day.until("a draft", lambda: day.shown.is_draft)
    day.hands.press(KEY.Key_3, CTRL)
    day.enter("lora.rank", "16")
    day.enter("training.max_steps", "40")
    day.begin()
    day.finish()


def compare(day: Day) -> None:
    """The two newest of the list, beside each other."""
    day.hands.press(KEY.Key_L, CTRL)
    day.hands.press(KEY.Key_Home)
    day.hands.press(KEY.Key_Down)
    day.hands.press(KEY.Key_Down, SHIFT)
    day.until("both to be chosen", lambda: len(day.shown.keys) == 2)
    controller = day.window.tabs.controllers["compare"]
    day.until("both to be read", lambda: controller.found is not None)
    day.until("the chart", lambda: day.screens["compare"].chart is not None)
    day.seen |= {"tab": day.window.tabs.current, "compared": list(day.shown.keys)}
    day.seen["differs"] = [difference.path for difference in controller.found.differences]


def chat(day: Day) -> None:
    """With the newest run and its base."""
    day.hands.press(KEY.Key_L, CTRL)
    day.hands.press(KEY.Key_Home)
    day.hands.press(KEY.Key_Down)
    day.until("it to be shown", lambda: day.shown.state == "finished")
    day.hands.find("chat")
    panel = day.screens["chat"].chat
    day.until("it to be loadable", panel.load.isEnabled)
    day.hands.tab_to("Load", QAbstractButton)
    day.hands.press(KEY.Key_Space)
    day.until("the model to be loaded", panel.send.isEnabled)
    day.hands.tab_to("Your message", QPlainTextEdit)
    day.hands.tab_to("Most tokens", QLineEdit)
    day.hands.press(KEY.Key_A, CTRL)
    day.hands.type(ANSWER_TOKENS)
    day.hands.tab_to("Your message", QPlainTextEdit, key=KEY.Key_Backtab)
    day.hands.type("Say red")
    day.hands.press(KEY.Key_Return)
    chat = day.window.tabs.controllers["chat"].chat
    day.until("an answer of each", lambda: chat.state == "ready" and bool(chat.exchanges))
    day.seen["answers"] = dict(chat.exchanges[-1].answers)


def export(day: Day) -> None:
    """As it is proposed, and proven."""
    day.hands.find("export")
    screen = day.screens["export"]
    day.hands.tab_to("Export", QAbstractButton, lambda found: found is screen.export)
    day.hands.press(KEY.Key_Space)
    day.until("the proof", lambda: screen.outcome.text() or screen.notice.text)
    day.seen |= {"export": screen.outcome.text() or screen.notice.text, "target": screen.out.text()}


ACTS = (pick, inspect, set_up, estimate, train, resume, train_another, compare, chat, export)


def go(day: Day) -> None:
    """All of it, each act timed."""
    for act in ACTS:
        began = time.monotonic()
        try:
            act(day)
        except AssertionError as error:
            raise SystemExit(f"{act.__name__}: {error}; seen: {json.dumps(day.seen)}") from error
        day.seen["seconds"][act.__name__] = round(time.monotonic() - began, 1)


def main() -> int:
    with real_window() as window:
        window.activateWindow()
        day = Day(window, *sys.argv[1:3])
        day.until("the window to have the focus", lambda: QApplication.focusWidget() is not None)
        go(day)
        day.seen["platform"] = QApplication.platformName()
        print(json.dumps(day.seen), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
