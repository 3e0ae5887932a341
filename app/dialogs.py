"""The questions the window asks, its settings, and its help."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QCheckBox, QDialog, QMessageBox, QTabWidget, QTextBrowser, QVBoxLayout, QWidget

from app.presenters import sleep
from app.presenters.numerals import example
from app.presenters.run_fold import RunFold
from app.presenters.words import count_text, duration_text
from app.services.number_style import LANGUAGES, style_of
from app.services.settings import Settings
from app.theme import GAP, GAP_PAGE, GAP_WIDE
from app.widgets.kit import Segments, as_written, button, column, label, row, set_tip
from app.widgets.reading import show_markdown
from app.widgets.scrolled import Scrolled
from app.widgets.settings_parts import HomeForm, NumbersForm, TokenForm
from qlora_engine import paths
from qlora_engine.runs.outlook import Busy
from qlora_engine.training import awake

SAVE, DISCARD, KEEP, CLOSE_ANYWAY, DELETE, GO_ON = "save", "discard", "keep", "close", "delete", "go on"
QUEUE, START_ANYWAY = "queue", "start"
DESTRUCTIVE = (DISCARD, CLOSE_ANYWAY, DELETE, START_ANYWAY)
"""Answers that lose something: never the default, and never what Escape gives."""
SETTINGS_SIZE = (600, 640)
"""Pixels: what all of it takes, and a small screen has."""
HELP_PAGES = (
    ("start", "First steps"),
    ("qlora", "What QLoRA is"),
    ("model", "Model"),
    ("data", "Data"),
    ("memory", "Memory"),
    ("train", "Train"),
    ("try", "Try it"),
    ("export", "Export"),
    ("runs", "Runs"),
    ("trouble", "When it does not work"),
    ("glossary", "Glossary"),
    ("options", "All options"),
    ("keys", "Keyboard"),
)


def ask_stop(parent: QWidget, run: RunFold) -> str:
    """Stop and save, stop and discard, or keep training."""
    step = run.last_step.step if run.last_step else 0
    return ask(
        parent,
        "Stop the run?",
        f"The run is at step {count_text(step)}.",
        "Saving takes a moment and lets you resume at exactly this step. Without saving, the work since the last "
        "checkpoint is lost.",
        (("Stop and save", SAVE), ("Stop without saving", DISCARD), ("Keep training", KEEP)),
    )


def ask_busy(parent: QWidget, busy: Busy) -> str:
    """Wait in the queue, start beside the other run, or neither."""
    left = (
        f" It says it needs {duration_text(busy.left_seconds)} more." if busy.left_seconds is not None else ""
    )
    return ask(
        parent,
        "Another run is training",
        f"{busy.message}.",
        f"In the queue it begins by itself as soon as the other has ended.{left}",
        (("Put into the queue", QUEUE), ("Start beside it", START_ANYWAY), ("Do not start", KEEP)),
    )


def ask_close(parent: QWidget, run: RunFold) -> str:
    """Let it go on by itself, save and close, close at once, or stay."""
    return ask(
        parent,
        "A run is training",
        f"The run {run.run_id or ''} is still training.",
        "It can go on without the window, and the next window shows it. Or it is saved first and offered again at the "
        "next start. Closing at once loses the work since the last checkpoint.",
        (
            ("Let it go on", GO_ON),
            ("Save and close", SAVE),
            ("Close at once", CLOSE_ANYWAY),
            ("Keep training", KEEP),
        ),
    )


def ask_delete(parent: QWidget, title: str, text: str, details: str, caption: str) -> bool:
    """True when it is to be deleted."""
    return ask(parent, title, text, details, ((caption, DELETE), ("Keep it", KEEP))) == DELETE


def ask(parent: QWidget, title: str, text: str, details: str, answers: tuple[tuple[str, str], ...]) -> str:
    """The value of the answer; `KEEP` is what Escape gives. The default is the first that loses nothing."""
    box = QMessageBox(QMessageBox.Icon.Question, title, as_written(text), parent=parent)
    box.setInformativeText(as_written(details))
    roles = {
        SAVE: QMessageBox.ButtonRole.AcceptRole,
        GO_ON: QMessageBox.ButtonRole.AcceptRole,
        QUEUE: QMessageBox.ButtonRole.AcceptRole,
        KEEP: QMessageBox.ButtonRole.RejectRole,
    }
    buttons = {
        value: box.addButton(caption, roles.get(value, QMessageBox.ButtonRole.DestructiveRole))
        for caption, value in answers
    }
    box.setDefaultButton(next(found for value, found in buttons.items() if value not in DESTRUCTIVE))
    box.setEscapeButton(buttons[KEEP])
    box.exec()
    return next((value for value, found in buttons.items() if found is box.clickedButton()), KEEP)


THEMES_IN_WORDS = (
    ("system", "As the desktop"),
    ("dark", "Dark"),
    ("light", "Light"),
    ("contrast", "High contrast"),
)


NOTIFIES = "Tell the desktop when a run ends and this window is not in front"
READY = "Keep an engine ready: a run or a chat starts some seconds sooner"
READY_TAKES = "It takes about half a GiB of the computer's memory, and none of a GPU's; after half an hour without use it goes"


class SettingsDialog(QDialog):
    """How the window looks and where the engine runs; each choice holds at once."""

    def __init__(self, parent: QWidget, settings: Settings, choose: Callable[..., None]) -> None:
        super().__init__(parent)
        self.setWindowTitle("Settings \u2013 QLoRA Studio")
        self.theme = Segments(THEMES_IN_WORDS)
        self.theme.set_value(settings.theme)
        self.theme.chosen.connect(lambda value: choose(theme=value))
        self.engine = Segments(
            (("process", "In a process of its own"), ("inline", "In the window's process")),
            ("Usual: the window stays smooth, and a crash of the engine does not take it down",
             "For debugging: importing the ML libraries makes the window stutter"),
        )  # fmt: skip
        self.engine.set_value(settings.engine)
        self.engine.chosen.connect(lambda value: choose(engine=value))
        self.notifies = _check_box(NOTIFIES, settings.notifies, lambda is_on: choose(notifies=is_on))
        self.ready = _check_box(READY, settings.keeps_ready, lambda is_on: choose(keeps_ready=is_on))
        set_tip(self.ready, READY_TAKES)
        self.numbers = NumbersForm(LANGUAGES, settings.numbers, lambda name: example(style_of(name)))
        self.numbers.chosen.connect(lambda value: choose(numbers=value))
        self.sleep = label(sleep.in_settings(awake.why_not()), "small", wraps=True)
        self.token = TokenForm()
        self.home = HomeForm()
        inner = QWidget()
        inner.setLayout(column(
            label("Appearance", "strong"), self.theme,
            label("Engine", "strong"), self.engine,
            label("In a process of its own the window stays smooth, and only the end of a process gives all GPU memory back. A change holds for the next job.", "small", wraps=True),
            self.ready,
            label("Language of numbers", "strong"), self.numbers,
            label("Notifications", "strong"), self.notifies,
            label("Sleep", "strong"), self.sleep,
            label("Hugging Face hub", "strong"), self.token,
            label("Models, runs and settings are kept in", "strong"), self.home, None, gap=GAP,
        ))  # fmt: skip
        layout = column(Scrolled(inner), row(None, button("Close", self.accept)), gap=GAP)
        layout.setContentsMargins(GAP_PAGE, GAP_PAGE, GAP_PAGE, GAP_WIDE)
        self.setLayout(layout)
        self.resize(*SETTINGS_SIZE)


def _check_box(words: str, is_on: bool, chosen: Callable[[bool], None]) -> QCheckBox:
    box = QCheckBox(words)
    box.setChecked(is_on)
    box.toggled.connect(chosen)
    return box


class HelpWindow(QDialog):
    """A window of its own, beside the program's: it takes no click away and goes behind when the other is used."""

    def __init__(self) -> None:
        super().__init__(None, Qt.WindowType.Window)
        self.setWindowTitle("Help \u2013 QLoRA Studio")
        self.resize(860, 640)
        self._tabs = QTabWidget()
        self._tabs.setDocumentMode(True)
        self._pages: dict[str, QTextBrowser] = {}
        for name, title in HELP_PAGES:
            file = paths.resources_dir() / "help" / f"{name}.md"
            if file.is_file():
                view = QTextBrowser()
                view.setOpenExternalLinks(True)
                show_markdown(view, file.read_text(encoding="utf-8"))
                self._tabs.addTab(view, title)
                self._pages[name] = view
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 12, 12, 12)
        layout.addWidget(self._tabs)

    def open_at(self, page: str) -> None:
        """Show a page and come to the front."""
        if page in self._pages:
            self._tabs.setCurrentWidget(self._pages[page])
        self.show()
        self.raise_()
        self.activateWindow()
