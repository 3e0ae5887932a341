"""Write a prompt set: its name, and one prompt on each line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PySide6.QtWidgets import QDialog, QLineEdit, QWidget

from app.presenters.words import capital
from app.theme import GAP, GAP_PAGE, GAP_WIDE
from app.widgets.form import text_box
from app.widgets.kit import Notice, button, column, label, row
from qlora_engine.errors import EngineError
from qlora_engine.evaluate.prompt_sets import PromptSet

BREAK = "\\n"
"""How a line break inside a prompt is written, since each line is one prompt."""


class PromptDialog(QDialog):
    """Accepted once `save` took the set; what it refuses is said here. `saved_name` is the set's."""

    def __init__(
        self,
        parent: QWidget,
        name: str,
        prompts: Sequence[str],
        save: Callable[[str, Sequence[str]], PromptSet],
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle("Prompt set \u2013 QLoRA Studio")
        self.resize(560, 420)
        self._save = save
        self.saved_name = ""
        self.name = QLineEdit(name)
        self.name.setAccessibleName("Name")
        self.name.setPlaceholderText("Name of the set")
        self.prompts = text_box("Prompts", "\n".join(prompt.replace("\n", BREAK) for prompt in prompts))
        self.notice = Notice()
        self.save_button = button("Save set", self._try, "primary")
        layout = column(
            label("Name", "small"), self.name, label(f"Prompts, one on each line; {BREAK} begins a new line in a prompt", "small"),
            self.prompts, self.notice, row(None, button("Cancel", self.reject), self.save_button), gap=GAP,
        )  # fmt: skip
        layout.setContentsMargins(GAP_PAGE, GAP_WIDE, GAP_PAGE, GAP_WIDE)
        self.setLayout(layout)

    def _try(self) -> None:
        prompts = [line.replace(BREAK, "\n") for line in self.prompts.toPlainText().splitlines()]
        try:
            self.saved_name = self._save(self.name.text(), prompts).name
        except EngineError as error:
            self.notice.say(f"{capital(error.message)}.", capital(error.hint), "bad")
            return
        self.accept()
