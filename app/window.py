"""The window: runs at the left, the chosen one's head and tabs in the middle, the strip below. Presenters decide."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PySide6.QtCore import QRect, QSize, QTimer
from PySide6.QtGui import QCloseEvent, QResizeEvent
from PySide6.QtWidgets import QBoxLayout, QHBoxLayout, QMainWindow, QStackedWidget, QVBoxLayout, QWidget

from app.frame.announcer import Announcer
from app.frame.beside import Beside
from app.frame.closing import Closing
from app.frame.commands import Commands
from app.frame.drafts import Drafts
from app.frame.experiments import Experiments
from app.frame.folding import FOLD_BELOW, Folding
from app.frame.header import HeaderController
from app.frame.queue_window import QueueWindow
from app.frame.queueing import Queueing
from app.frame.run_list import RunListController
from app.frame.run_menu import RunMenu
from app.frame.steering import Steering
from app.frame.strip import StripController
from app.frame.tabs import RunTabs
from app.services.focus import FocusKeeper
from app.services.shown_run import DRAFT
from app.studio import Studio
from app.tab import DRAFT as OF_DRAFT
from app.tabs import all_tabs
from app.widgets import tab_order
from app.widgets.banner import Banner
from app.widgets.run_card import RunCard
from app.widgets.run_header import RunHead
from app.widgets.run_list import RunList
from app.widgets.strip import Strip
from app.widgets.tab_bar import TabBar
from qlora_engine import events as ev
from qlora_engine.config import TrainingConfig

__all__ = ["FOLD_BELOW", "MainWindow", "first_size"]
SMALLEST = (960, 600)
FRAME = QSize(16, 48)
"""Room that the desktop's frame and title bar may take around the window."""


class MainWindow(QMainWindow):
    """Made of services and passive parts; nothing here knows what a loss is."""

    def __init__(self, studio: Studio) -> None:
        super().__init__()
        self.studio = studio
        self.setWindowTitle("QLoRA Studio")
        kept = studio.settings.value
        size = first_size(QSize(kept.width, kept.height), self.screen().availableGeometry())
        self.setMinimumSize(QSize(*SMALLEST).boundedTo(size))
        self.resize(size)
        self.runs, self.head, self.card = RunList(), RunHead(), RunCard()
        self.strip, self.banner, self.stack = Strip(), Banner(), QStackedWidget()
        self.bar = TabBar(list(dict.fromkeys(tab.heading for tab in all_tabs())))
        self.tabs = RunTabs(studio, self.stack, self.bar, self)
        self._lay_out()
        self.announcer = Announcer(studio, self.banner, self)
        self.steering = Steering(
            self, studio, self.announcer, began=self._show_own, tried=partial(self.go_to, "chat", "load"),
            queued=lambda run_dir: self.waiting.add(run_dir),
        )  # fmt: skip
        self.drafts = Drafts(studio, self.banner)
        self.waiting = Queueing(studio, self.drafts, self.banner)
        self.queue = QueueWindow(self, studio, self.waiting)
        self.trying = Experiments(self, studio, self.waiting, partial(self.go_to, "compare"))
        self.run_menu = RunMenu(studio, self.head, self.banner, self.waiting, self.trying, self.queue.open)
        self.run_card = HeaderController(studio, self.head, self.card, self.bar)
        self.folding = Folding(self, studio, self.tabs, self.runs, self.card, self.run_card)
        self.run_list = RunListController(studio, self.runs, self._opened)
        self.strip_line = StripController(studio, self.strip)
        self.closing = Closing(self, studio.trainer, self.banner, self.close)
        self.focus_keeper = FocusKeeper(self, lambda: self.runs.view)
        self.beside = Beside(self, studio, self.tabs)
        self._connect()
        self.go_to("model")
        self.stack.setFocus()

    def load(self) -> None:
        """Everything that the first picture does not need: the machine, models, runs, the other tabs, the charts."""
        self.studio.load()
        self.waiting.look()
        QTimer.singleShot(0, self.tabs.build_one_more)

    # ------------------------------------------------------------ ways

    def go_to(self, tab: str, detail: str = "") -> None:
        """Show a tab of the chosen run, and an option on it; what only a draft has leads to the draft."""
        if self.tabs.tabs[tab].of == (OF_DRAFT,) and not self.studio.shown.is_draft:
            self.studio.shown.show(DRAFT)
        self.tabs.show(tab, detail)

    def open_run(self, run_dir: str | None, tab: str, detail: str = "") -> None:
        """Show a run, and a tab of it."""
        if run_dir:
            self.studio.shown.show(run_dir)
        self.go_to(tab, detail)

    def draft_from(self, config: TrainingConfig) -> None:
        """Prepare another run with the settings of one."""
        self.drafts.make(config)
        self.go_to("settings")

    def resume(self, run_dir: Path, accept: Sequence[str] = ()) -> None:
        self.steering.resume(run_dir, accept)

    # ------------------------------------------------------------ parts

    def _lay_out(self) -> None:
        middle = _tight(QVBoxLayout())
        for part in (self.banner, self.head, self.bar):
            middle.addWidget(part)
        middle.addWidget(self.stack, 1)
        upper = _tight(QHBoxLayout())
        upper.addWidget(self.runs)
        upper.addLayout(middle, 1)
        upper.addWidget(self.card)
        central = QWidget()
        central.setProperty("role", "page")
        outer = _tight(QVBoxLayout(central))
        outer.addLayout(upper, 1)
        outer.addWidget(self.strip)
        self.setCentralWidget(central)

    def _connect(self) -> None:
        runs, head, card, steering = self.runs, self.head, self.card, self.steering
        for signal, act in (
            (runs.new_asked, self._new), (runs.help_asked, lambda: self.beside.open_help()),
            (runs.settings_asked, self.beside.open_settings), (runs.rename_asked, self.run_menu.edit_notes),
            (runs.delete_asked, self.run_menu.delete), (self.strip.clicked, self._show_own),
            (card.start_asked, steering.start), (card.queue_asked, self.waiting.add), (card.vary_asked, self.trying.open),
            (card.problem_chosen, self.go_to), (head.act_asked, steering.act),
            (head.card_asked, self.folding.toggle_card), (head.pause_asked, steering.pause),
            (head.stop_asked, steering.stop), (self.studio.trainer.ended, self._ended),
        ):  # fmt: skip
            signal.connect(act)
        self.commands = Commands(self, self.studio, self.tabs, head, runs, (
            ("New run", "Ctrl+N", self._new), ("Start training", "Ctrl+Return", partial(self.run_card.when_startable, steering.start)),
            ("Pause or continue", "Ctrl+P", partial(self.run_card.when_live, steering.pause)),
            ("Stop the run", "", partial(self.run_card.when_live, steering.stop)),
            ("Show what is training", "Ctrl+T", self._show_own), ("Queue", "Ctrl+J", self.queue.open), ("Settings", "Ctrl+,", self.beside.open_settings),
            ("Help", "", lambda: self.beside.open_help()), ("Keyboard", "F1", partial(self.beside.open_help, "keys")),
        ))  # fmt: skip

    # ------------------------------------------------------------ what happens

    def _new(self) -> None:
        self.drafts.begin()
        self.go_to("model")

    def _opened(self) -> None:
        """Another run was chosen in the list: a draft is prepared, others are looked at."""
        is_draft = self.studio.shown.is_draft
        self.tabs.open_chosen(is_kept=not is_draft and self.studio.shown.state != "failed")

    def _show_own(self) -> None:
        if self.studio.trainer.run.state != "idle":
            self.studio.shown.show_own()
        self.go_to("live")

    def _ended(self, event: ev.Event) -> None:
        self.studio.history.refresh()
        if self.closing.closes_after(event):
            self.close()
        else:
            self.announcer.tell_end(event)

    def focusNextPrevChild(self, next: bool) -> bool:  # noqa: A002 - Qt's own name
        return tab_order.move_on(self, forwards=next)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.folding.fit()

    def closeEvent(self, event: QCloseEvent) -> None:
        """A running job is never lost by a click: it is asked about, and saved before the window goes."""
        if not self.closing.may_close():
            event.ignore()
            return
        self.studio.settings.change(width=self.width(), height=self.height())
        self.hide()  # ending what runs may take a second
        self.beside.close()
        self.studio.close()
        super().closeEvent(event)


def first_size(wanted: QSize, available: QRect) -> QSize:
    """As wanted, as far as the screen has room for it and for the frame around it."""
    return wanted.boundedTo(available.size() - FRAME)


def _tight(layout: QBoxLayout) -> QBoxLayout:
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(0)
    return layout
