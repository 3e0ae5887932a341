"""Data tab: source, rows, report, doctor, split and reasoning, one tab each; files dropped anywhere are taken."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtGui import QDragEnterEvent, QDropEvent, QShowEvent
from PySide6.QtWidgets import QStackedWidget, QWidget

from app.presenters.words import count_text
from app.tabs.data.presenters.head import DataState
from app.widgets.kit import Elided, Segments, boxed, button, column, row
from app.widgets.page import Page
from app.widgets.scrolled import Scrolled
from app.widgets.share_bar import ShareBar

SOURCE, ROWS, REPORT, DOCTOR, SPLIT = TAB_NAMES = ("source", "rows", "report", "doctor", "split")
TABS = (
    (SOURCE, "Source"),
    (ROWS, "Rows"),
    (REPORT, "Report"),
    (DOCTOR, "Doctor"),
    (SPLIT, "Split and reasoning"),
)
SENTENCES = {
    SOURCE: "Where the rows are, and which column is what",
    ROWS: "Every row, as stored and as the model is fed it",
    REPORT: "What the model will see, in numbers",
    DOCTOR: "What is wrong, and what one click mends",
    SPLIT: "What is held out, and what is trained of a row",
}


class DataScreen(Page):
    """Panels are made when they are first wanted. Signals: `tab_wanted(name)`, `files_dropped(list)`, `check_asked`,
    `cancel_asked`, `shown` whenever the page comes into sight."""

    tab_wanted = Signal(str)
    files_dropped = Signal(list)
    check_asked = Signal()
    cancel_asked = Signal()
    shown = Signal()

    def __init__(self) -> None:
        super().__init__("Data", SENTENCES[SOURCE], scrolls=False)
        self.setAcceptDrops(True)
        self.check = button("Check data", self.check_asked.emit, "primary")
        self.buttons.addWidget(self.check)
        self.tabs = Segments(TABS)
        self.tabs.chosen.connect(self.tab_wanted)
        self.progress_text, self.progress = Elided(role="small"), ShareBar()
        self.progress.show_share(None)
        work = row(
            boxed(column(self.progress_text, self.progress, gap=4)), button("Cancel", self.cancel_asked.emit)
        )
        work.setStretch(0, 1)
        self.progress_row = boxed(work)
        self.stack = QStackedWidget()
        self.content.addWidget(self.tabs)
        self.content.addWidget(self.progress_row)
        self.content.addWidget(self.stack, 1)
        self.panels: dict[str, QWidget] = {}
        self._pages: dict[str, QWidget] = {}
        self.current = ""

    def add_panel(self, name: str, panel: QWidget, *, scrolls: bool = True) -> None:
        self.panels[name] = panel
        self._pages[name] = Scrolled(panel) if scrolls else panel
        self.stack.addWidget(self._pages[name])

    def show_tab(self, name: str) -> None:
        self.current = name
        self.tabs.set_value(name)
        self.sentence.setText(SENTENCES[name])
        self.stack.setCurrentWidget(self._pages[name])

    def show_state(self, state: DataState) -> None:
        self.notice.say(state.notice, state.notice_hint, state.notice_tone)
        self.progress_row.setVisible(state.is_checking)
        self.progress_text.setText(state.checking_text)
        self.check.setEnabled(state.can_check and not state.is_checking)
        self.tabs.set_caption(
            DOCTOR, f"Doctor ({count_text(state.attention)})" if state.attention else "Doctor"
        )

    def restyle(self) -> None:
        """Take the theme's colours into what paints itself."""
        for panel in self.panels.values():
            getattr(panel, "restyle", panel.update)()

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self.shown.emit()

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        files = [url.toLocalFile() for url in event.mimeData().urls() if url.isLocalFile()]
        if files:
            event.acceptProposedAction()
            self.files_dropped.emit(files)
