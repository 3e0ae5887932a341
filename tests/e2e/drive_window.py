"""Uses the real window as a person does, with the real engine: run as a program, under any of Qt's platforms.

python -m tests.e2e.drive_window whole     choose, start, look, stop, resume, finish, export; prints what was seen
python -m tests.e2e.drive_window train     start and train until killed; prints each step
python -m tests.e2e.drive_window queue     put it into the queue and watch it until killed; prints each step
python -m tests.e2e.drive_window watch     choose the newest run and watch it to its end; prints the curve as it is drawn
python -m tests.e2e.drive_window picture   a picture of a run under way, for README and help, into resources/help/window.png
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QEventLoop, Qt, QTimer
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QLineEdit, QMessageBox, QPushButton, QWidget

from app.presenters.run_numbers import numbers_of
from app.window import MainWindow
from qlora_engine.paths import resources_dir
from tests.support.real_window import real_window

SHORT = {
    "training.max_steps": "14",
    "training.eval_every_steps": "7",
    "training.end_rows": "1",
    "training.eval_rows": "8",
    "training.sample_tokens": "8",
    "checkpoint.every_steps": "2",
}
SLOWEST_SECONDS = 240.0
SIZE = (1380, 880)
"""With the run card open."""


class Person:
    """Hands and eyes: clicks, types, reads, waits."""

    def __init__(self, window: MainWindow) -> None:
        self.window = window
        self.seen: dict[str, Any] = {}

    def wait(self, what: str, until: Callable[[], bool], seconds: float = SLOWEST_SECONDS) -> None:
        loop, timer = QEventLoop(), QTimer(interval=20)
        end = time.monotonic() + seconds
        timer.timeout.connect(lambda: loop.quit() if until() or time.monotonic() > end else None)
        timer.start()
        loop.exec()
        timer.stop()
        if not until():
            raise SystemExit(
                f"waited {seconds:.0f} s in vain for: {what}; banner: {self.window.banner.text!r}"
            )

    def click(self, target: QWidget) -> None:
        self.wait(f"{target} to be usable", lambda: target.isVisible() and target.isEnabled())
        QTest.mouseClick(target, Qt.MouseButton.LeftButton)

    def answer(self, caption: str) -> None:
        """Press a button of the next question."""
        timer = QTimer(self.window, interval=100)

        def look() -> None:
            box = QApplication.activeModalWidget()
            if isinstance(box, QMessageBox) and box.isVisible():
                timer.stop()
                found = next(b for b in box.buttons() if b.text() == caption)
                QTest.mouseClick(found, Qt.MouseButton.LeftButton)

        timer.timeout.connect(look)
        timer.start()

    def type_into(self, field: QLineEdit, text: str) -> None:
        field.setFocus()
        field.selectAll()
        QTest.keyClicks(field, text)
        QTest.keyClick(field, Qt.Key.Key_Return)

    def go_to(self, heading: str, tab: str) -> Any:
        """By the heading, and where several tabs stand under it, by theirs."""
        self.click(self.window.bar.items[heading])
        tabs = self.window.tabs
        if tabs.current != tab:
            self.click(tabs.screens[tabs.current].siblings._buttons[tab])
        return tabs.screens[tab]

    # ------------------------------------------------------------ what a person does

    def choose(self) -> None:
        """The starter model and its data, and a short recipe."""
        screen = self.go_to("Setup", "model")
        self.wait("the list of models", lambda: bool(self.window.studio.workspace.base.models))
        rectangle = screen.list.visualItemRect(screen.list.item(0))
        QTest.mouseClick(screen.list.viewport(), Qt.MouseButton.LeftButton, pos=rectangle.center())
        self.wait("the facts", lambda: self.window.studio.workspace.base.facts is not None)
        settings = self.go_to("Setup", "settings")
        for path, text in SHORT.items():
            form = next(f for f in settings.forms if path in f.rows)
            form.rows[path].setVisible(True)
            self.type_into(form.rows[path]._editor, text)
        self.seen["memory"] = self.window.card.facts.count()
        self.wait("a run without problems", lambda: self.window.card.headline.text() == "Ready to train")

    def start(self) -> None:
        self.click(self.window.card.start)
        self.wait("the first word of the run", lambda: self.window.studio.trainer.run.run_id is not None)

    def points(self) -> int:
        return len(self.window.studio.trainer.run.series["loss"])

    def is_over(self) -> bool:
        return not self.window.studio.trainer.is_running

    def stop(self) -> None:
        self.answer("Stop and save")
        self.click(self.window.head.stop)
        self.wait("the run to stop", self.is_over)

    def resume(self) -> None:
        self.wait("the run to be resumable", lambda: self.window.head.primary.text() == "Resume")
        self.click(self.window.head.primary)
        self.wait("the run to go on", lambda: self.window.studio.trainer.run.is_live)

    def export(self) -> None:
        button = next(b for b in self.window.banner.findChildren(QPushButton) if b.text() == "Export")
        self.click(button)
        screen = self.window.tabs.screens["export"]
        self.wait("something to export", lambda: bool(screen.out.text()))
        self.click(screen.export)
        self.wait("the proof", lambda: bool(screen.outcome.text()) or bool(screen.notice.text))
        self.seen["export"] = screen.outcome.text()
        self.seen["checks"] = screen.checks.count()


def whole(person: Person) -> None:
    person.choose()
    person.start()
    person.wait("five points of loss", lambda: person.points() >= 5)
    live = person.window.tabs.screens["live"]
    person.wait("the charts", lambda: live.charts is not None)
    charts = live.charts
    person.wait("the points to be drawn", lambda: len(charts.loss._data["loss"][0]) >= 5)
    person.stop()
    run = person.window.studio.trainer.run
    person.seen |= {"stopped_at": run.last_step.step if run.last_step else 0, "state_after_stop": run.state}
    person.resume()
    person.wait("the end", person.is_over)
    run = person.window.studio.trainer.run
    numbers = numbers_of(run)
    person.seen |= {
        "run_dir": run.run_dir,
        "state": run.state,
        "steps": [int(x) for x in run.series["loss"].x],
        "before": run.loss_before,
        "after": run.last_evaluation.loss if run.last_evaluation else None,
        "held_out_text": numbers.held_out_text,
        "banner": person.window.banner.text,
    }
    person.export()
    person.seen["platform"] = QApplication.platformName()


def train(person: Person) -> None:
    """Until somebody ends this process."""
    person.choose()
    person.start()
    told = 0

    def has_news() -> bool:
        return person.points() > told or person.is_over()

    while not person.is_over():
        person.wait("another step", has_news)
        told = person.points()
        print(json.dumps({"points": told, "run_dir": person.window.studio.trainer.run.run_dir}), flush=True)


def queue(person: Person) -> None:
    """Until somebody ends this process; the run is another one's."""
    person.choose()
    person.click(person.window.card.queue)
    told = 0

    def has_news() -> bool:
        return len(watched(person)) > told

    while True:
        person.wait("another step", has_news)
        told = len(watched(person))
        print(json.dumps({"points": told, "run_dir": person.window.studio.shown.key}), flush=True)


def watch(person: Person) -> None:
    """The run that another process trains, or trained."""
    history = person.window.studio.history
    person.wait("the runs to be listed", lambda: bool(history.summaries))
    person.seen["found"] = history.summaries[0].state
    person.window.runs.chosen.emit((str(history.summaries[0].path),))
    person.go_to("Live", "live")
    live = person.window.tabs.screens["live"]
    person.wait("the charts", lambda: live.charts is not None)
    person.wait("the end", lambda: person.window.studio.shown.state == "finished")
    person.wait("it to be read", lambda: person.window.studio.shown.fold.last_evaluation is not None)
    person.wait("the whole curve", lambda: len(live.charts.loss._data["loss"][0]) == len(watched(person)))
    person.seen |= {"drawn": [int(x) for x in live.charts.loss._data["loss"][0]]}


def watched(person: Person) -> list[int]:
    """The steps that the window knows of the run that is shown."""
    return [int(x) for x in person.window.studio.shown.fold.series["loss"].x]


def picture(person: Person) -> None:
    """As a person sees it in the middle of a run."""
    person.choose()
    person.start()
    live = person.window.tabs.screens["live"]
    person.wait("the charts", lambda: live.charts is not None)
    person.wait("ten points of loss", lambda: person.points() >= 10)
    person.window.resize(1366, 820)
    person.wait("them to be drawn", lambda: len(live.charts.loss._data["loss"][0]) >= 10)
    person.window.grab().save(str(resources_dir() / "help" / "window.png"))
    person.answer("Stop without saving")
    person.click(person.window.head.stop)
    person.wait("the run to stop", person.is_over)


def offered(person: Person) -> None:
    """The next start after something was killed."""
    person.wait("an offer to resume", lambda: "was interrupted" in person.window.banner.text)
    person.seen["offer"] = person.window.banner.text
    person.click(next(b for b in person.window.banner.findChildren(QPushButton) if b.text() == "Resume"))
    person.wait("the run to go on", lambda: person.window.studio.trainer.run.is_live)
    person.wait("the end", person.is_over)
    run = person.window.studio.trainer.run
    person.seen |= {"state": run.state, "steps": [int(x) for x in run.series["loss"].x]}


def main() -> int:
    ways = (whole, train, queue, watch, offered, picture)
    with real_window(SIZE, numbers="en") as window:  # the same texts and pictures on every computer
        person = Person(window)
        {way.__name__: way for way in ways}[sys.argv[1]](person)
        print(json.dumps(person.seen), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
