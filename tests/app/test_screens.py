"""Every screen in named states, in both themes and two sizes: painted to pictures, and checked for what spoils them.

The pictures go to `build/screens` (or QLORA_SCREENS) to be looked at by eye.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import QRect, Qt
from PySide6.QtGui import QColor, QFontMetrics
from PySide6.QtWidgets import QAbstractButton, QApplication, QLabel, QLineEdit, QScrollArea, QWidget
from pytestqt.qtbot import QtBot

from app import theme
from app.presenters.problems import PAGES
from app.widgets.kit import Elided
from app.window import MainWindow
from qlora_engine import events as ev
from qlora_engine import paths
from qlora_engine.config import TrainingConfig
from qlora_engine.evaluate import replay_plan
from qlora_engine.export.journal import FILE, aside_of
from qlora_engine.jobs import ReplayJob
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.timeline import timelines
from tests.app import events_of_a_run as told
from tests.app import try_states as told_of_try
from tests.app.conftest import MakeWindow
from tests.app.quality_of_a_model import quality_report

ROOT = Path(__file__).resolve().parents[2]
PICTURES = Path(os.environ.get("QLORA_SCREENS", ROOT / "build" / "screens"))
SIZES = {"wide": (1380, 880), "small": (940, 640)}
LONG = "a-model-with-a-name-so-long-that-it-cannot-fit-anywhere/Llama-3.3-70B-Instruct-abliterated-v2-final"


def idle(window: MainWindow) -> None:
    """As a newcomer finds it."""


def running(window: MainWindow) -> None:
    run = window.studio.trainer.run
    run.begin()
    for event in told.whole_run(45):
        run.fold(event)
    window.studio.trainer.state_changed.emit()
    window.studio.trainer.changed.emit()


def paused(window: MainWindow) -> None:
    running(window)
    window.studio.trainer.run.fold(ev.Paused(45))
    window.studio.trainer.state_changed.emit()


def failed(window: MainWindow) -> None:
    running(window)
    event = ev.RunFailed("memory.gpu", "The GPU is out of memory even at micro-batch 1", "shorten data.seq_len, lower lora.rank, or train fewer modules", log_tail="...")  # fmt: skip
    window.studio.trainer.run.fold(event)
    window.announcer.tell_end(event)
    window.studio.trainer.changed.emit()


def wrong(window: MainWindow) -> None:
    work = window.studio.workspace
    work.edit("lora.rank", 0)
    work.edit("training.learning_rate", float("nan"))
    work.edit("data.seq_len", 3)


def long_names(window: MainWindow) -> None:
    work = window.studio.workspace
    work.edit("model.name", LONG)
    work.edit("data.path", f"/a/very/deep/folder/{'sub/' * 12}{LONG.replace('/', '-')}.jsonl")


def with_runs(window: MainWindow) -> None:
    window.studio.history.refresh()


def quality_running(window: MainWindow) -> None:
    check = window.studio.quality
    check._text, check._share = "84 of 210 layers stored", 0.4
    check.changed.emit()


def quality_measured(window: MainWindow) -> None:
    window.studio.quality.report = quality_report()
    window.studio.quality.changed.emit()
    window.go_to("model")
    screen = window.pages.screens["model"]
    QApplication.processEvents()
    screen.findChild(QScrollArea).verticalScrollBar().setValue(screen.quality.y() - 8)


def quality_picture(window: MainWindow) -> None:
    quality_measured(window)
    bar = window.pages.screens["model"].findChild(QScrollArea).verticalScrollBar()
    bar.setValue(bar.maximum())


def exported(window: MainWindow) -> None:
    """Done and proven, beside what an earlier export left."""
    aside = aside_of(paths.home() / "exports" / "first-look-merged")
    aside.mkdir(parents=True)
    files = {"model.safetensors": {"nbytes": 1_300_000_000, "sha256": "0"}}
    key = {"run": "first-look", "format": "merged"}
    (aside / FILE).write_text(json.dumps({"key": key, "owner": None, "files": files}))
    window.studio.history.refresh()
    window.go_to("export")
    fold = window.pages.controllers["export"].fold
    fold.begin()
    for event in (
        ev.Noticed("warning", "export.rounding", "quantizing the merged weights to 4 bits again rounds what was trained"),
        ev.CheckFinished("logits equal base + adapter", True, "largest difference 8.1e-04 of the largest logit, allowed 1e-03"),
        ev.CheckFinished("llama.cpp computes the same", None, "llama-cpp-python is not installed here"),
        ev.CheckFinished("greedy answers are the same", False, "1 of 3 answers, up to 24 tokens each"),
        ev.RunFinished({"path": f"/exports/{LONG}", "bytes": 2**30, "is_proven": True}),
    ):  # fmt: skip
        fold.fold(event)
    fold.push_text = (
        "The hub does not let you write to owner/name (it answered 403). Log in with a token that may write."
    )


def exported_below(window: MainWindow) -> None:
    exported(window)
    QApplication.processEvents()
    bar = window.pages.screens["export"].findChild(QScrollArea).verticalScrollBar()
    bar.setValue(bar.maximum())


STATES: dict[str, tuple[Callable[[MainWindow], None], tuple[str, ...]]] = {
    "idle": (idle, PAGES),
    "running": (running, ("train", "memory", "try")),
    "paused": (paused, ("train",)),
    "failed": (failed, ("train",)),
    "wrong": (wrong, ("train", "data")),
    "long": (long_names, ("model", "data", "train")),
    "quality-running": (quality_running, ("model",)),
    "quality": (quality_measured, ("model",)),
    "quality-picture": (quality_picture, ("model",)),
    "runs": (with_runs, ("runs", "try", "export")),
    "exported": (exported, ("export",)),
    "exported-below": (exported_below, ("export",)),
}


def make_runs() -> None:
    for name, state, before, after in (
        ("first-look", "finished", 3.168, 0.449), ("poems", "crashed", 2.9, 1.8), (LONG.replace("/", "-"), "failed", 3.0, None),
    ):  # fmt: skip
        folder = RunFolder.create(TrainingConfig())
        named = folder.path.with_name(name)
        folder.path.rename(named)
        found = RunFolder(named)
        found.adapter_dir.mkdir(exist_ok=True)
        if state == "finished":
            (found.adapter_dir / "adapter_model.safetensors").write_bytes(b"x")
        found.update(
            state=state, loss_before=before, loss_after=after, last_step=45, plan={"total_steps": 60}
        )
        for event in told.whole_run(45):
            if not isinstance(event, ev.MemorySampled):
                found.append(event)


@pytest.fixture(params=["dark", "light"])
def mode(request: pytest.FixtureRequest, qapp: QApplication) -> Iterator[str]:
    theme.apply(qapp, request.param)
    yield request.param
    theme.apply(qapp, "dark")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("state", STATES)
def test_screens_can_be_looked_at(
    qtbot: QtBot, make_window: MakeWindow, mode: str, state: str, size: str
) -> None:
    prepare, pages = STATES[state]
    if state in ("runs", "exported", "exported-below"):
        make_runs()
    window = make_window(theme=mode)
    window.resize(*SIZES[size])
    prepare(window)
    for page in pages:
        window.go_to(page)
        if page == "train" and state in ("running", "paused", "failed"):
            window.pages.show("train", "live")
        if page in ("train", "runs"):
            screen = window.pages.screens[page]
            charts = "charts" if page == "train" else "chart"
            qtbot.waitUntil(lambda s=screen, c=charts: getattr(s, c) is not None, timeout=20_000)
        if state == "runs":
            qtbot.waitUntil(lambda: len(window.studio.history.summaries) == 3, timeout=10_000)
        window.studio.trainer.changed.emit()
        qtbot.wait(80)
        folder = PICTURES / mode
        folder.mkdir(parents=True, exist_ok=True)
        assert window.grab().save(str(folder / f"{page}-{state}-{size}.png"))
        assert clipped(window) == []
        assert overlapping(window) == []
        assert running_out(window) == []
        assert unnamed(window) == []


def try_chat(window: MainWindow, count: int = 3, state: str = "ready") -> None:
    """Three sides, or more, with long answers and a word that cannot be broken."""
    first, *others = [told_of_try.make_run(n, created=9.0 - i) for i, n in enumerate(TRY_RUNS[: count - 1])]
    chat = window.pages.controllers["try"].chat
    chat.begin()
    chat.fold(ev.SessionReady(told_of_try.facts(first, *others)))
    for prompt in (told_of_try.BOOTS, "And " + "very " * 30 + "long?"):
        request = chat.ask(prompt, chat.sides)
        for side in chat.sides:
            chat.fold(
                ev.AnswerFinished(
                    request, side, f"{told_of_try.ANSWER}\n{LONG * 2}", 21, 0.7, side == "tuned"
                )
            )
    if state == "answering":
        chat.ask("Once more", chat.sides)
    window.pages.controllers["try"].paint()


def try_chat_six(window: MainWindow) -> None:
    try_chat(window, 6, "answering")


def try_failed(window: MainWindow) -> None:
    chat = window.pages.controllers["try"].chat
    chat.begin()
    chat.fold(ev.RunFailed("export.wrong_base", f"the base in /models/{LONG} is not the one", "get the original revision of the base model"))  # fmt: skip
    window.pages.controllers["try"].paint()


def try_sets(window: MainWindow, *, is_running: bool = False) -> None:
    runs = [told_of_try.make_run(name, created=9.0 - i) for i, name in enumerate(TRY_RUNS[:3])]
    prompts = (told_of_try.BOOTS, "Say " + "very " * 40 + "much", "Hi")
    job = ReplayJob([str(run.path) for run in runs], prompts)
    fold = window.pages.controllers["try"].sets.fold
    fold.show_plan(replay_plan.plan_of(job), prompts)
    for side in ("base", *(str(run.path) for run in runs[:2])):
        fold.fold(ev.AnswerFinished(0, side, told_of_try.ANSWER, 21, 0.7, True))
        fold.fold(ev.AnswerFinished(1, side, "Much " * 60, 60, 0.7, False))
    if is_running:
        fold.begin(again=False)
        fold.fold(ev.PhaseChanged("generating", "Asking 6 questions"))
        fold.fold(ev.Progressed("generating", 4, 12, "answers"))
    window.pages.controllers["try"].sets.paint()


def try_sets_running(window: MainWindow) -> None:
    try_sets(window, is_running=True)


def try_held_out(window: MainWindow) -> None:
    run = told_of_try.make_run("first-look")
    held_out = window.pages.controllers["try"].held_out
    held_out.fold.show(told_of_try.predictions(run))
    held_out._run = str(run.path)
    held_out.paint()


def try_held_out_running(window: MainWindow) -> None:
    try_held_out(window)
    held_out = window.pages.controllers["try"].held_out
    held_out.fold.begin()
    held_out.fold.fold(ev.PhaseChanged("evaluating", "Scoring 40 held-out rows"))
    held_out.paint()


def try_timeline(window: MainWindow) -> None:
    run = told_of_try.make_run("first-look")
    run.append(ev.SampleAnswered(60, told_of_try.BOOTS, "long " * 80, 80, 1.0))
    timeline = window.pages.controllers["try"].timeline
    timeline._found, timeline._run = timelines(run.metrics()), str(run.path)
    timeline.paint()


TRY_RUNS = ("first-look", LONG.replace("/", "-"), "third", "fourth", "fifth")
TRY_STATES: dict[str, tuple[str, Callable[[MainWindow], None]]] = {
    "nothing": ("sets", idle),
    "nothing-held-out": ("held_out", idle),
    "nothing-timeline": ("timeline", idle),
    "chat": ("chat", try_chat),
    "chat-six": ("chat", try_chat_six),
    "failed": ("chat", try_failed),
    "sets": ("sets", try_sets),
    "sets-running": ("sets", try_sets_running),
    "held-out": ("held_out", try_held_out),
    "held-out-running": ("held_out", try_held_out_running),
    "timeline": ("timeline", try_timeline),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_try_page_can_be_looked_at(qtbot: QtBot, make_window: MakeWindow, mode: str, size: str) -> None:
    window = make_window(theme=mode)
    window.resize(*SIZES[size])
    for state, (tab, prepare) in TRY_STATES.items():
        shutil.rmtree(paths.runs_dir(), ignore_errors=True)
        window.go_to("try")
        prepare(window)
        window.pages.screens["try"].show_tab(tab)
        qtbot.wait(60)
        folder = PICTURES / mode
        folder.mkdir(parents=True, exist_ok=True)
        assert window.grab().save(str(folder / f"try-{state}-{size}.png"))
        found = clipped(window), overlapping(window), running_out(window), unnamed(window)
        assert found == ([], [], [], []), state


def clipped(window: QWidget) -> list[str]:
    """Labels and buttons whose text has less room than it needs, and neither wraps nor ends in an ellipsis."""
    found = []
    for widget in window.findChildren(QWidget):
        if not widget.isVisible() or isinstance(widget, Elided):
            continue
        if (isinstance(widget, QLabel) and not widget.wordWrap() and widget.text()) or (
            isinstance(widget, QAbstractButton) and widget.text()
        ):
            is_rich = isinstance(widget, QLabel) and widget.textFormat() == Qt.TextFormat.RichText
            text_width = QFontMetrics(widget.font()).horizontalAdvance(widget.text())
            need = widget.sizeHint().width() if is_rich else text_width
        else:
            continue
        if widget.width() + 1 < need:
            found.append(f"{type(widget).__name__} {widget.text()!r}: {widget.width()} of {need} px")
    return found


def overlapping(window: QWidget) -> list[str]:
    """Visible siblings, laid out by the same parent, that cover each other."""
    found = []
    for parent in [window, *window.findChildren(QWidget)]:
        if not parent.isVisible() or parent.layout() is None:
            continue
        children = [
            c for c in parent.children() if isinstance(c, QWidget) and c.isVisible() and not c.isWindow()
        ]
        laid_out = [c for c in children if parent.layout().indexOf(c) >= 0 and not c.geometry().isEmpty()]
        for index, one in enumerate(laid_out):
            for other in laid_out[index + 1 :]:
                shared: QRect = one.geometry().intersected(other.geometry())
                if shared.width() > 1 and shared.height() > 1:
                    found.append(
                        f"{describe(one)} and {describe(other)} by {shared.width()} x {shared.height()} px"
                    )
    return found


def running_out(window: QWidget) -> list[str]:
    """Scrolled content that is wider than what can be seen of it."""
    found = []
    for area in window.findChildren(QScrollArea):
        content = area.widget()
        if area.isVisible() and content is not None and content.width() > area.viewport().width() + 1:
            found.append(f"{content.width()} px in {area.viewport().width()} px")
    return found


def unnamed(window: QWidget) -> list[str]:
    """What can be used but says nothing to a screen reader."""
    found = []
    for widget in window.findChildren(QWidget):
        if isinstance(widget, QLineEdit | QAbstractButton) and widget.isVisible():
            text = widget.text() if isinstance(widget, QAbstractButton) else ""
            if not (widget.accessibleName() or text or widget.objectName().startswith("qt_")):
                found.append(describe(widget))
    return found


def describe(widget: QWidget) -> str:
    text = getattr(widget, "text", lambda: "")()
    return f"{type(widget).__name__}({str(text)[:40]!r})"


def test_the_checks_can_see_what_they_look_for(qtbot: QtBot) -> None:
    outer = QWidget()
    qtbot.addWidget(outer)
    narrow = QLabel("a text that has far too little room", outer)
    narrow.setFixedWidth(20)
    QLineEdit(outer)
    outer.show()
    assert clipped(outer)
    assert unnamed(outer)


# ---------------------------------------------------------------- colours


def luminance(colour: str) -> float:
    found = QColor(colour)

    def linear(value: float) -> float:
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(v) for v in (found.redF(), found.greenF(), found.blueF()))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio, 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("tokens", [theme.DARK, theme.LIGHT], ids=["dark", "light"])
@pytest.mark.parametrize("ink", ["text", "quiet", "accent", "good", "warning", "bad"])
def test_text_can_be_read_on_every_ground(tokens: theme.Tokens, ink: str) -> None:
    for ground in ("background", "panel", "raised"):
        assert contrast(getattr(tokens, ink), getattr(tokens, ground)) >= 4.5, ground


@pytest.mark.parametrize("tokens", [theme.DARK, theme.LIGHT], ids=["dark", "light"])
def test_the_loud_button_can_be_read(tokens: theme.Tokens) -> None:
    assert contrast(tokens.on_accent, tokens.accent) >= 4.5
