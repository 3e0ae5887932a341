"""The window: runs at the left, the chosen one's head and tabs in the middle, the strip below. Presenters decide."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

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

from app.dialogs import KEEP, SAVE, ask_stop
from app.frame.announcer import Announcer
from app.frame.beside import Beside
from app.frame.closing import Closing
from app.frame.drafts import Drafts
from app.frame.header import HeaderController
from app.frame.queueing import Queueing
from app.frame.run_list import RunListController
from app.frame.run_menu import RunMenu
from app.frame.strip import StripController
from app.frame.tabs import RunTabs
from app.presenters.run_header import RESUME, START, TRY
from app.services.focus import FocusKeeper
from app.services.shown_run import DRAFT
from app.studio import Studio
from app.tab import DRAFT as OF_DRAFT
from app.tabs import all_tabs
from app.widgets.banner import Banner
from app.widgets.run_card import RunCard
from app.widgets.run_header import RunHead
from app.widgets.run_list import RunList
from app.widgets.strip import Strip
from app.widgets.tab_bar import TabBar
from qlora_engine import events as ev
from qlora_engine.config import TrainingConfig
from qlora_engine.control import STOP_DISCARD, STOP_SAVE
from qlora_engine.runs import commands

FOLD_BELOW = 1200
"""Pixels of width under which the run card folds into buttons and the list of runs into signs."""
SETUP = "Setup"
"""The heading beside whose tabs the run card stands."""
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
        self._is_card_open = False
        self._lay_out()
        self.announcer = Announcer(studio, self.banner, self)
        self.run_card = HeaderController(studio, self.head, self.card, self.bar)
        self.drafts = Drafts(studio, self.banner)
        self.waiting = Queueing(studio, self.drafts, self.banner)
        self.run_menu = RunMenu(studio, self.head, self.banner, self.waiting)
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

    def start(self) -> None:
        """Start the run that the run card describes."""
        job = self.studio.workspace.job
        job.save_now()
        self._make_room()
        self.studio.trainer.start(job.config, job.folder)
        self._show_own()

    def resume(self, run_dir: Path, accept: Sequence[str] = ()) -> None:
        """Go on with a run that was stopped or broke off."""
        self.announcer.clear()
        self._make_room()
        found = self.studio.history.find_in(str(run_dir))
        self.studio.trainer.resume(run_dir, accept, found.model if found is not None else "")
        self._show_own()

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
        studio = self.studio
        self.runs.new_asked.connect(self._new)
        self.runs.rename_asked.connect(self.run_menu.edit_notes)
        self.runs.delete_asked.connect(self.run_menu.delete)
        self.runs.help_asked.connect(self.beside.open_help)
        self.runs.settings_asked.connect(self.beside.open_settings)
        self.strip.clicked.connect(self._show_own)
        self.card.start_asked.connect(self.start)
        self.card.queue_asked.connect(self.waiting.add)
        self.head.act_asked.connect(self._act)
        self.head.card_asked.connect(self._toggle_card)
        self.head.pause_asked.connect(self._pause)
        self.head.stop_asked.connect(self._stop)
        self.card.problem_chosen.connect(self.go_to)
        studio.trainer.ended.connect(self._ended)
        studio.shown.changed.connect(self._place_card)
        self.tabs.came.connect(self._place_card)
        for keys, act in (
            (QKeySequence(QKeySequence.StandardKey.HelpContents), self.beside.open_help),
            (QKeySequence("Ctrl+Return"), self._start_by_key), (QKeySequence("Ctrl+N"), self._new),
            *((QKeySequence(f"Ctrl+{n}"), partial(self.tabs.show_number, n - 1)) for n in range(1, 10)),
        ):  # fmt: skip
            QShortcut(keys, self).activated.connect(act)

    # ------------------------------------------------------------ what happens

    def _act(self, action: str) -> None:
        """What the head's primary button says."""
        path = self.studio.shown.path
        if action == START:
            self.start()
        elif action == RESUME and path is not None:
            self.resume(path)
        elif action == TRY:
            self.go_to("chat", "load")

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

    def _make_room(self) -> None:
        """A run gets the memory and the processor to itself."""
        self.studio.workspace.watch.cancel()
        self.studio.tryout.make_room()

    def _start_by_key(self) -> None:
        if self.run_card.can_start and self.studio.shown.is_draft:
            self.start()

    def _pause(self) -> None:
        if self.studio.shown.is_own:
            self.studio.trainer.pause_or_continue()
        else:
            self._tell_elsewhere("continue" if self.studio.shown.fold.state == "paused" else "pause")

    def _tell_elsewhere(self, command: str, **more: str) -> None:
        """A run that another program trains takes wishes from its folder."""
        path = self.studio.shown.path
        if path is not None:
            tell = partial(commands.send, path, {"command": command, **more})
            self.studio.background.submit("command", tell, lambda _: None, self.announcer.tell_problem)

    def _stop(self) -> None:
        """The three-way question; while it is open the run goes on."""
        shown = self.studio.shown
        is_own = shown.is_own
        answer = ask_stop(self, shown.fold)
        if not is_own:
            if answer != KEEP:
                self._tell_elsewhere("stop", mode=STOP_SAVE if answer == SAVE else STOP_DISCARD)
        elif answer == SAVE:
            self.studio.trainer.stop_and_save()
        elif answer != KEEP:
            self.studio.trainer.stop_and_discard()

    def _ended(self, event: ev.Event) -> None:
        self.studio.history.refresh()
        if self.closing.closes_after(event):
            self.close()
        else:
            self.announcer.tell_end(event)

    def _toggle_card(self) -> None:
        self._is_card_open = not self._is_card_open
        self._place_card()

    def _place_card(self, *_: object) -> None:
        """The card stands beside the setup of a draft; in a narrow window it is opened by a button."""
        has_room = self.width() >= FOLD_BELOW
        is_setup = self.tabs.current != "" and self.tabs.tabs[self.tabs.current].group == SETUP
        self.card.setVisible(self.studio.shown.is_draft and (is_setup if has_room else self._is_card_open))
        self.run_card.fit(has_room=has_room)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        is_narrow = self.width() < FOLD_BELOW
        if is_narrow != self.runs.is_narrow:
            self.runs.set_narrow(is_narrow)
            self._is_card_open = False
        self._place_card()

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
