"""The prompt sets of the Prompt sets tab: which one is chosen, and writing, importing and deleting them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QFileDialog

from app.dialogs import ask_delete
from app.tabs.chat.sets_panel import SetsPanel
from app.widgets.prompt_dialog import PromptDialog
from qlora_engine.errors import EngineError
from qlora_engine.evaluate import prompt_sets
from qlora_engine.evaluate.prompt_sets import PromptSet

PROMPT_FILES = "Prompts (*.txt *.jsonl *.json)"


class PromptLibrary(QObject):
    """Signals: `changed` when other prompts are chosen."""

    changed = Signal()

    def __init__(self, panel: SetsPanel) -> None:
        super().__init__(panel)
        self._panel = panel
        self._sets: list[PromptSet] = []
        self._chosen = prompt_sets.STARTER
        panel.set_chosen.connect(self._choose)
        panel.new_asked.connect(lambda: self.write_new(()))
        panel.edit_asked.connect(self._edit)
        panel.import_asked.connect(self._import)
        panel.delete_asked.connect(self._delete)
        self._read()

    @property
    def prompts(self) -> tuple[str, ...]:
        return next((found.prompts for found in self._sets if found.name == self._chosen), ())

    def write_new(self, prompts: Sequence[str]) -> bool:
        """Ask for a name and let the prompts be written; True when a set was saved."""
        return self._write("", prompts)

    def import_file(self, file: Path) -> None:
        """Prompts of a file, named after it, to be looked at before they are saved."""
        try:
            prompts = prompt_sets.read_prompts(file)
        except EngineError as error:
            self._panel.notice.say(f"{error.message}.", error.hint, "bad")
            return
        self._write(file.stem, prompts)

    def _edit(self) -> None:
        found = next((s for s in self._sets if s.name == self._chosen), None)
        if found is not None:
            self._write(f"{found.name} (copy)" if found.is_builtin else found.name, found.prompts)

    def _write(self, name: str, prompts: Sequence[str]) -> bool:
        dialog = PromptDialog(self._panel, name, prompts, prompt_sets.save)
        if not dialog.exec():
            return False
        saved = dialog.saved_name
        if name and name != saved and any(s.name == name and not s.is_builtin for s in self._sets):
            prompt_sets.delete(name)  # it was renamed
        self._chosen = saved
        self._read()
        return True

    def _import(self) -> None:
        file, _ = QFileDialog.getOpenFileName(self._panel, "Import prompts", "", PROMPT_FILES)
        if file:
            self.import_file(Path(file))

    def _delete(self) -> None:
        details = "Answers that runs keep stay with them."
        text = f"Delete {self._chosen}?"
        if ask_delete(self._panel, "Delete this prompt set?", text, details, "Delete set"):
            prompt_sets.delete(self._chosen)
            self._read()

    def _read(self) -> None:
        self._sets = prompt_sets.all_sets()
        known = {found.name for found in self._sets}
        self._choose(self._chosen if self._chosen in known else prompt_sets.STARTER)

    def _choose(self, name: str) -> None:
        self._chosen = name
        self._panel.set_sets(self._sets, name)
        self.changed.emit()
