"""What a run left on the disk, and the end of its log."""

from __future__ import annotations

from PySide6.QtCore import QUrl, Signal
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QPlainTextEdit

from app.presenters.run_files import RunFiles
from app.widgets.kit import Card, Facts, SideBySide, button
from app.widgets.page import Page


class FilesScreen(Page):
    """Signals: `refresh_asked`."""

    refresh_asked = Signal()

    def __init__(self) -> None:
        super().__init__("Files and log", "What this run left on the disk, and what it said")
        self.again = button("Look again", self.refresh_asked.emit)
        self.folder = button("Open folder", self._open)
        for found in (self.again, self.folder):
            self.buttons.addWidget(found)
        self.facts, self.files = Facts(110), Facts(150)
        self.details, self.kept = Card("Details").add(self.facts), Card("Files").add(self.files)
        for card in (self.details, self.kept):
            card.body.addStretch(1)
        self.parts = SideBySide(self.details, self.kept)
        self.log = QPlainTextEdit()
        self.log.setReadOnly(True)
        self.log.setAccessibleName("Log of the run")
        self.log.setMinimumHeight(180)
        self.log.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.log_card = Card("Log").add(self.log)
        self.content.addWidget(self.parts)
        self.content.addWidget(self.log_card, 1)
        self.content.addStretch(0)
        self._path = ""

    def show_run(self, path: str, rows: tuple[tuple[str, ...], ...], warnings: str) -> None:
        """`path` is empty for a run that has no folder."""
        self._path = path
        for part in (self.parts, self.log_card):
            part.setVisible(bool(path))
        for found in (self.again, self.folder):
            found.setEnabled(bool(path))
        self.facts.set_rows(rows)
        if not path:
            self.notice.say("This run has no folder yet.", "It is made when the run is started.")
        else:
            self.notice.say(warnings, "", "warning")

    def show_files(self, found: RunFiles | None) -> None:
        self.files.set_rows(found.rows if found is not None else ())
        text = found.log if found is not None else ""
        if text != self.log.toPlainText():
            self.log.setPlainText(text)
            bar = self.log.verticalScrollBar()
            bar.setValue(bar.maximum())
        self.log.setPlaceholderText("It has said nothing yet.")

    def _open(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(self._path))
