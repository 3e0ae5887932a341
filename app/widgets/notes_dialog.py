"""Name, note and tags of a run."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtWidgets import QDialog, QLineEdit, QWidget

from app.theme import GAP, GAP_PAGE
from app.widgets.form import text_box
from app.widgets.kit import Notice, button, column, label, row
from qlora_engine.errors import EngineError
from qlora_engine.runs.notes import Notes


class NotesDialog(QDialog):
    """`keep` writes them down; what it refuses is said here, and nothing is lost."""

    def __init__(self, parent: QWidget, run_id: str, found: Notes, keep: Callable[[Notes], object]) -> None:
        super().__init__(parent)
        self.setWindowTitle("Name, note and tags")
        self.setMinimumWidth(460)
        self._keep = keep
        self.notice = Notice()
        self.name, self.tags, self.note = (
            QLineEdit(found.name),
            QLineEdit(", ".join(found.tags)),
            text_box("Note", found.note),
        )
        for editor, words in ((self.name, "Name"), (self.tags, "Tags")):
            editor.setAccessibleName(words)
        self.name.setPlaceholderText(run_id)
        self.tags.setPlaceholderText("for example: poems, best so far")
        self.save = button("Save", self._save, "primary")
        layout = column(
            self.notice, label("Name", "strong"), self.name,
            label("Its folder keeps the name that it has.", "small", wraps=True),
            label("Tags, with commas between", "strong"), self.tags, label("Note", "strong"), self.note,
            row(None, button("Cancel", self.reject), self.save), gap=GAP,
        )  # fmt: skip
        layout.setContentsMargins(GAP_PAGE, GAP_PAGE, GAP_PAGE, GAP_PAGE)
        self.setLayout(layout)
        self.save.setDefault(True)
        self.notice.say(found.problem)

    def _save(self) -> None:
        wanted = Notes(self.name.text(), self.note.toPlainText(), tuple(self.tags.text().split(",")))
        try:
            self._keep(wanted)
        except (EngineError, OSError) as error:
            self.notice.say(str(getattr(error, "message", error)), getattr(error, "hint", ""), "bad")
            return
        self.accept()
