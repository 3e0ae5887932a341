"""Parts of the settings dialog: the language of numbers, the hub's token (in the hub library's own store) and the home folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QFileDialog, QLineEdit, QWidget

from app.widgets.form import QuietCombo
from app.widgets.kit import button, column, label, row

NUMBERS_NOTE = (
    "Holds from the next start. Fields take numbers as they are shown here. Sentences that the engine writes (errors, "
    "advice) keep the English form, as do files and the terminal."
)


class NumbersForm(QWidget):
    """How numbers are written. `languages` are (name, title), `example_of` what a name looks like. Signal: `chosen(name)`."""

    chosen = Signal(str)

    def __init__(
        self, languages: Sequence[tuple[str, str]], now: str, example_of: Callable[[str], str]
    ) -> None:
        super().__init__()
        self._example_of = example_of
        self.language = QuietCombo()
        self.language.setAccessibleName("Language of numbers")
        for name, title in languages:
            self.language.addItem(title, name)
        self.language.setCurrentIndex(max(0, self.language.findData(now)))
        self.example = label("", "strong", wraps=True, selectable=True)
        self._show_example()
        self.language.currentIndexChanged.connect(self._show_example)
        self.language.activated.connect(lambda _: self.chosen.emit(self.language.currentData()))
        self.setLayout(
            column(row(self.language, None), self.example, label(NUMBERS_NOTE, "small", wraps=True), gap=4)
        )

    def _show_example(self) -> None:
        self.example.setText(self._example_of(self.language.currentData()))


class TokenForm(QWidget):
    """Signals: `save_asked(token)`, `forget_asked`."""

    save_asked = Signal(str)
    forget_asked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.told = label("Looking for a token.", "small", wraps=True)
        self.field = QLineEdit()
        self.field.setEchoMode(QLineEdit.EchoMode.Password)
        self.field.setAccessibleName("Token of the Hugging Face hub")
        self.field.setPlaceholderText("hf_\u2026")
        self.save = button("Keep token", self._save)
        self.forget = button("Forget it", self.forget_asked.emit)
        self.field.textChanged.connect(lambda text: self.save.setEnabled(bool(text.strip())))
        self.save.setEnabled(False)
        self.setLayout(column(self.told, row(self.field, self.save, self.forget), gap=4))

    def show_token(self, has_token: bool, problem: str = "") -> None:
        where = "kept where all programs of the hub find it"
        self.told.setText(
            problem
            or (f"There is a token, {where}." if has_token else "No token is kept. Gated models need one.")
        )
        self.forget.setEnabled(has_token)
        self.field.clear()

    def _save(self) -> None:
        self.save_asked.emit(self.field.text().strip())


class HomeForm(QWidget):
    """Where runs, models and everything else is kept. Signal: `home_asked(folder)`, a Path; None: the usual folder."""

    home_asked = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.place = label("", "quiet", wraps=True, selectable=True)
        self.told = label("", "small", wraps=True)
        self.choose = button("Choose folder\u2026", self._choose)
        self.usual = button("Use the usual folder", lambda: self.home_asked.emit(None))
        self.setLayout(column(self.place, self.told, row(self.choose, self.usual, None), gap=4))

    def show_home(self, now: Path, following: Path, usual: Path, is_told: bool, problem: str = "") -> None:
        """`now`: of this program; `following`: from the next start; `is_told`: `QLORA_HOME` decides, no choice here."""
        self.place.setText(str(now))
        self.told.setText(problem or _about(now, following, is_told))
        self.choose.setEnabled(not is_told)
        self.usual.setEnabled(not is_told and following != usual)

    def _choose(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Choose where runs, models and settings are kept")
        if folder:
            self.home_asked.emit(Path(folder))


def _about(now: Path, following: Path, is_told: bool) -> str:
    if is_told:
        return "QLORA_HOME says so. Start the program without it to choose a folder here."
    if now != following:
        return f"From the next start, in the window and the terminal: {following}. Nothing is moved; what is in the folder above stays there."
    return "Another folder holds from the next start, in the window and the terminal. Nothing is moved."
