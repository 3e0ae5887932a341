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

from app.main import make_application, make_window
from app.services.collector import Collector
from app.window import MainWindow
from qlora_engine.config import all_knobs
from tests.support.hands import CTRL, KEY, SHIFT, Hands

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

    # ------------------------------------------------------------ what a person does

    def pick(self) -> None:
        """The tiny model, from the list of those on this computer."""
        self.until("the list of models", lambda: bool(self.work.base.models))
        self.hands.press(KEY.Key_1, CTRL)
        found = self.hands.tab_to("Models on this computer", QListWidget)
        assert isinstance(found, QListWidget)
        self.hands.press(KEY.Key_Home)
        for _ in range(found.count()):
            if found.currentItem().text().startswith(self.model):
                break
            self.hands.press(KEY.Key_Down)
        self.hands.press(KEY.Key_Return)
        self.until("its facts", lambda: self.work.base.facts is not None)
        self.seen["model"] = self.work.job.config.model.name

    def inspect(self) -> None:
        """Where the rows are, what was found of them, and the third row."""
        self.hands.press(KEY.Key_2, CTRL)
        self.hands.tab_to("Dataset", QLineEdit)
        self.hands.press(KEY.Key_A, CTRL)
        self.hands.type(self.rows)
        self.hands.press(KEY.Key_Return)
        self.until("it to be chosen", lambda: self.work.job.config.data.path == self.rows)
        self.until("a report", lambda: self.work.data.report is not None)
        self.hands.tab_to("Source", QAbstractButton, key=KEY.Key_Backtab)
        self.hands.press(KEY.Key_Right)
        panel = self.screens["data"].panels["rows"]
        self.until("the rows", lambda: panel.list.rows.total > 0)
        self.hands.tab_to("Rows of the data")
        self.hands.press(KEY.Key_Home)
        self.hands.press(KEY.Key_Down, times=2)
        self.until("the third row", lambda: "row 3" in panel.where.text().lower())
        self.seen["row"] = panel.raw.toPlainText()
        self.seen["rows"] = panel.list.rows.total

    def set_up(self) -> None:
        """A short recipe."""
        self.hands.press(KEY.Key_3, CTRL)
        self.enter("lora.rank", "4")
        self.enter("training.max_steps", str(STEPS))
        self.enter("training.eval_every_steps", str(STEPS // 2))
        self.hands.tab_to("Show all options", QAbstractButton)
        self.hands.press(KEY.Key_Space)
        self.enter("training.end_rows", "0")
        self.enter("training.sample_tokens", "4")

    def estimate(self) -> None:
        """What a higher rank takes."""
        self.hands.press(KEY.Key_4, CTRL)
        self.until("the memory", lambda: self.work.memory.own is not None)
        rank, before = self.work.job.config.lora.rank, self.needs()
        self.hands.tab_to("Rank", QSlider)
        self.hands.press(KEY.Key_Right)
        self.until("a higher rank", lambda: self.work.job.config.lora.rank > rank)
        self.until("what it takes", lambda: self.needs() > before)
        self.seen |= {"rank": self.work.job.config.lora.rank, "needs": [before, self.needs()]}

    def needs(self) -> int:
        """Bytes at the peak."""
        own = self.work.memory.own
        return 0 if own is None else own.bar("double_quant").device_likely

    def train(self) -> None:
        """Start, pause, go on, stop."""
        self.begin()
        self.until("five points", lambda: self.points() >= 5)
        self.hands.press(KEY.Key_P, CTRL)
        self.until("it to pause", lambda: self.trainer.run.state == "paused")
        paused = self.points()
        pause_ends = time.monotonic() + 0.5
        self.until("half a second to go by", lambda: time.monotonic() > pause_ends)
        self.seen["paused_at"] = [paused, self.points()]
        self.hands.press(KEY.Key_P, CTRL)
        self.until("it to go on", lambda: self.points() > paused + 5)
        self.answer()
        self.hands.find("stop the run")
        self.until("it to stop", lambda: not self.trainer.is_running)
        self.seen |= {"stopped": self.trainer.run.state, "stopped_at": self.trainer.run.step}

    def resume(self) -> None:
        """To its end."""
        self.until("the window to have the keyboard", self.has_keyboard)
        self.until("it to be resumable", lambda: self.window.head.primary.text() == "Resume")
        self.hands.find("resume")
        self.until("it to go on", lambda: self.trainer.is_running)
        self.finish()
        self.seen["steps"] = [int(x) for x in self.trainer.run.series["loss"].x]

    def train_another(self) -> None:
        """The same with a higher rank."""
        self.hands.find("duplicate")
        self.until("a draft", lambda: self.shown.is_draft)
        self.hands.press(KEY.Key_3, CTRL)
        self.enter("lora.rank", "16")
        self.enter("training.max_steps", "40")
        self.begin()
        self.finish()

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

    def compare(self) -> None:
        """The two newest of the list, beside each other."""
        self.hands.press(KEY.Key_L, CTRL)
        self.hands.press(KEY.Key_Home)
        self.hands.press(KEY.Key_Down)
        self.hands.press(KEY.Key_Down, SHIFT)
        self.until("both to be chosen", lambda: len(self.shown.keys) == 2)
        controller = self.window.tabs.controllers["compare"]
        self.until("both to be read", lambda: controller.found is not None)
        self.until("the chart", lambda: self.screens["compare"].chart is not None)
        self.seen |= {"tab": self.window.tabs.current, "compared": list(self.shown.keys)}
        self.seen["differs"] = [difference.path for difference in controller.found.differences]

    def chat(self) -> None:
        """With the newest run and its base."""
        self.hands.press(KEY.Key_L, CTRL)
        self.hands.press(KEY.Key_Home)
        self.hands.press(KEY.Key_Down)
        self.until("it to be shown", lambda: self.shown.state == "finished")
        self.hands.find("chat")
        panel = self.screens["chat"].chat
        self.until("it to be loadable", panel.load.isEnabled)
        self.hands.tab_to("Load", QAbstractButton)
        self.hands.press(KEY.Key_Space)
        self.until("the model to be loaded", panel.send.isEnabled)
        self.hands.tab_to("Your message", QPlainTextEdit)
        self.hands.tab_to("Longest answer", QLineEdit)
        self.hands.press(KEY.Key_A, CTRL)
        self.hands.type(ANSWER_TOKENS)
        self.hands.tab_to("Your message", QPlainTextEdit, key=KEY.Key_Backtab)
        self.hands.type("Say red")
        self.hands.press(KEY.Key_Return)
        chat = self.window.tabs.controllers["chat"].chat
        self.until("an answer of each", lambda: chat.state == "ready" and bool(chat.exchanges))
        self.seen["answers"] = dict(chat.exchanges[-1].answers)

    def export(self) -> None:
        """As it is proposed, and proven."""
        self.hands.find("export")
        screen = self.screens["export"]
        self.hands.tab_to("Export", QAbstractButton, lambda found: found is screen.export)
        self.hands.press(KEY.Key_Space)
        self.until("the proof", lambda: screen.outcome.text() or screen.notice.text)
        self.seen |= {"export": screen.outcome.text() or screen.notice.text, "target": screen.out.text()}

    def go(self) -> None:
        acts = (
            self.pick, self.inspect, self.set_up, self.estimate, self.train, self.resume, self.train_another, self.compare,
            self.chat, self.export,
        )  # fmt: skip
        for act in acts:
            began = time.monotonic()
            try:
                act()
            except AssertionError as error:
                raise SystemExit(f"{act.__name__}: {error}; seen: {json.dumps(self.seen)}") from error
            self.seen["seconds"][act.__name__] = round(time.monotonic() - began, 1)


def main() -> int:
    app = make_application([sys.argv[0]])
    collector = Collector()
    window = make_window(app)
    window.show()
    window.activateWindow()
    window.load()
    day = Day(window, *sys.argv[1:3])
    day.until("the window to have the focus", lambda: QApplication.focusWidget() is not None)
    day.go()
    day.seen["platform"] = QApplication.platformName()
    print(json.dumps(day.seen), flush=True)
    window.close()
    app.processEvents()
    collector.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
