"""The window: rail, pages, run card and strip. It navigates and connects; presenters decide."""

from __future__ import annotations

from functools import partial

from PySide6.QtCore import QRect, QSize, QTimer
from PySide6.QtGui import QCloseEvent, QKeySequence, QResizeEvent, QShortcut
from PySide6.QtWidgets import (
    QBoxLayout,
    QHBoxLayout,
    QMainWindow,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from app.controllers.announcer import Announcer
from app.controllers.beside import Beside
from app.controllers.closing import Closing
from app.controllers.pages import Pages
from app.controllers.runcard import RunCardController
from app.dialogs import KEEP, SAVE, ask_stop
from app.services.focus import FocusKeeper
from app.studio import Studio
from app.widgets.banner import Banner
from app.widgets.rail import Rail
from app.widgets.run_card import RunCard
from app.widgets.start_bar import StartBar
from app.widgets.strip import Strip
from qlora_engine import events as ev
from qlora_engine.runs.record import RunSummary

FOLD_BELOW = 1200
"""Pixels of width under which the run card folds into buttons and the rail into icons."""
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
        self.rail, self.card, self.strip, self.banner = Rail(), RunCard(), Strip(), Banner()
        self.start_bar = StartBar()
        self.stack = QStackedWidget()
        self.pages = Pages(studio, self.stack, go_to=self.go_to, resume=self.resume)
        self._lay_out()
        self.announcer = Announcer(studio, self.banner, self.pages, self.resume)
        self.run_card = RunCardController(studio, self.card, self.start_bar, self.strip, self.rail)
        self.closing = Closing(self, studio.trainer, self.banner, self.close)
        self.focus_keeper = FocusKeeper(self, lambda: self.rail.items.get(self.pages.current))
        self.beside = Beside(self, studio, self.pages)
        self._connect()
        self.go_to("model")
        self.stack.setFocus()

    def load(self) -> None:
        """Everything that the first picture does not need: the machine, models, runs, the other pages, the charts."""
        self.studio.load()
        QTimer.singleShot(0, self.pages.build_one_more)

    def go_to(self, page: str, path: str = "") -> None:
        """Show a page, and an option on it."""
        self.pages.show(page, path)
        self.rail.show_page(page)

    def start(self) -> None:
        """Start the run that the run card describes."""
        self.studio.workspace.job.save_now()
        self._make_room()
        self.go_to("train")
        self.studio.trainer.start(self.studio.workspace.job.config)

    def resume(self, summary: RunSummary) -> None:
        """Go on with a run that was stopped or broke off."""
        self.announcer.clear()
        self._make_room()
        self.go_to("train")
        self.studio.trainer.resume(summary.path)

    # ------------------------------------------------------------ parts

    def _lay_out(self) -> None:
        middle = _tight(QVBoxLayout())
        middle.addWidget(self.banner)
        middle.addWidget(self.stack, 1)
        upper = _tight(QHBoxLayout())
        upper.addWidget(self.rail)
        upper.addLayout(middle, 1)
        upper.addWidget(self.card)
        central = QWidget()
        central.setProperty("role", "page")
        outer = _tight(QVBoxLayout(central))
        outer.addLayout(upper, 1)
        outer.addWidget(self.strip)
        self.setCentralWidget(central)
        self.strip.add(self.start_bar)

    def _connect(self) -> None:
        studio = self.studio
        self.rail.chosen.connect(self.go_to)
        self.rail.help_asked.connect(self.beside.open_help)
        self.rail.settings_asked.connect(self.beside.open_settings)
        self.strip.clicked.connect(partial(self.go_to, "train", "live"))
        for starter in (self.card, self.start_bar):
            starter.start_asked.connect(self.start)
        self.start_bar.card_asked.connect(lambda: self.card.setVisible(not self.card.isVisible()))
        self.card.pause_asked.connect(studio.trainer.pause_or_continue)
        self.card.stop_asked.connect(self._stop)
        self.card.problem_chosen.connect(self.go_to)
        studio.trainer.ended.connect(self._ended)
        QShortcut(QKeySequence.StandardKey.HelpContents, self).activated.connect(self.beside.open_help)
        QShortcut(QKeySequence("Ctrl+Return"), self).activated.connect(self._start_by_key)

    # ------------------------------------------------------------ what happens

    def _make_room(self) -> None:
        """A run gets the memory and the processor to itself."""
        self.studio.workspace.watch.cancel()
        self.studio.tryout.make_room()

    def _start_by_key(self) -> None:
        if self.run_card.can_start:
            self.start()

    def _stop(self) -> None:
        """The three-way question; while it is open the run goes on."""
        answer = ask_stop(self, self.studio.trainer.run)
        if answer == SAVE:
            self.studio.trainer.stop_and_save()
        elif answer != KEEP:
            self.studio.trainer.stop_and_discard()

    def _ended(self, event: ev.Event) -> None:
        self.studio.history.refresh()
        if self.closing.closes_after(event):
            self.close()
        else:
            self.announcer.tell_end(event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        is_narrow = self.width() < FOLD_BELOW
        if is_narrow != self.start_bar.isVisibleTo(self):
            self.start_bar.setVisible(is_narrow)
            self.card.setVisible(not is_narrow)
            self.rail.set_narrow(is_narrow)

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
