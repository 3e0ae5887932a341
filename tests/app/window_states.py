"""What a window can look like: named states, each prepared as the engine and a person would bring it about."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from PySide6.QtWidgets import QApplication, QScrollArea

from app.presenters.run_fold import RunFold
from app.window import MainWindow
from qlora_engine import events as ev
from qlora_engine import paths
from qlora_engine.config import TrainingConfig
from qlora_engine.evaluate import replay_plan
from qlora_engine.export.journal import FILE, aside_of
from qlora_engine.jobs import ReplayJob
from qlora_engine.runs import plans, queue
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.timeline import timelines
from tests.app import events_of_a_run as told
from tests.app import try_states as told_of_try
from tests.app.data_states import DATA_STATES
from tests.app.quality_of_a_model import quality_report
from tests.support.run_folders import add_checkpoint

LONG = "a-model-with-a-name-so-long-that-it-cannot-fit-anywhere/Llama-3.3-70B-Instruct-abliterated-v2-final"


def idle(window: MainWindow) -> None:
    """As a newcomer finds it."""


def running(window: MainWindow) -> None:
    run = window.studio.trainer.run = RunFold()
    run.begin()
    for event in told.whole_run(45):
        run.fold(event)
    window.studio.trainer.state_changed.emit()
    window.studio.trainer.changed.emit()
    window.studio.shown.show_own()


def paused(window: MainWindow) -> None:
    running(window)
    window.studio.trainer.run.fold(ev.Paused(45))
    window.studio.trainer.state_changed.emit()


def pausing(window: MainWindow) -> None:
    running(window)
    window.studio.trainer.run.asked_to_pause(True)
    window.studio.trainer.state_changed.emit()


def failed(window: MainWindow) -> None:
    running(window)
    event = ev.RunFailed("memory.gpu", "The GPU is out of memory even at micro-batch 1", "shorten data.seq_len, lower lora.rank, or train fewer modules", log_tail="...")  # fmt: skip
    window.studio.trainer.run.fold(event)
    window.announcer.tell_end(event)
    window.studio.trainer.changed.emit()


def wrong(window: MainWindow) -> None:
    draft(window)
    work = window.studio.workspace
    work.job.edit("lora.rank", 0)
    work.job.edit("training.learning_rate", float("nan"))
    work.job.edit("data.seq_len", 3)


def long_names(window: MainWindow) -> None:
    work = window.studio.workspace
    work.job.edit("model.name", LONG)
    work.job.edit("data.path", f"/a/very/deep/folder/{'sub/' * 12}{LONG.replace('/', '-')}.jsonl")


def quality_running(window: MainWindow) -> None:
    check = window.studio.quality
    check._text, check._share = "84 of 210 layers stored", 0.4
    check.changed.emit()


def quality_measured(window: MainWindow) -> None:
    window.studio.quality.report = quality_report()
    window.studio.quality.changed.emit()
    window.go_to("model")
    screen = window.tabs.screens["model"]
    QApplication.processEvents()
    screen.findChild(QScrollArea).verticalScrollBar().setValue(screen.quality.y() - 8)


def quality_picture(window: MainWindow) -> None:
    quality_measured(window)
    bar = window.tabs.screens["model"].findChild(QScrollArea).verticalScrollBar()
    bar.setValue(bar.maximum())


def exported(window: MainWindow) -> None:
    """Done and proven, beside what an earlier export left."""
    aside = aside_of(paths.home() / "exports" / "first-look-merged")
    aside.mkdir(parents=True, exist_ok=True)
    files = {"model.safetensors": {"nbytes": 1_300_000_000, "sha256": "0"}}
    key = {"run": "first-look", "format": "merged"}
    (aside / FILE).write_text(json.dumps({"key": key, "owner": None, "files": files}))
    of_run("finished")(window)
    window.go_to("export")
    fold = window.tabs.controllers["export"].fold
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
    bar = window.tabs.screens["export"].findChild(QScrollArea).verticalScrollBar()
    bar.setValue(bar.maximum())


def of_run(state: str) -> Callable[[MainWindow], None]:
    """The run of the list that is in this state."""

    def prepare(window: MainWindow) -> None:
        window.studio.trainer.run = RunFold()
        found = next(s for s in window.studio.history.summaries if s.state == state)
        window.studio.shown.show(str(found.path))

    return prepare


def draft(window: MainWindow) -> None:
    window.studio.shown.show("draft")


def queued(window: MainWindow) -> None:
    window.studio.trainer.run = RunFold()
    found = next(e for e in window.studio.history.entries if e.state == "queued")
    window.studio.shown.show(str(found.path))


def several(window: MainWindow) -> None:
    """The longest name is among those that are compared."""
    window.studio.trainer.run = RunFold()
    window.studio.shown.show(*(str(s.path) for s in window.studio.history.summaries))


def foreign(window: MainWindow) -> None:
    """One that a terminal trains."""
    history = window.studio.history
    found = next(e for e in history.entries if e.state == "crashed")
    RunFolder(found.path).claim()
    live = replace(found, summary=replace(found.summary, state="running"))
    history._take(tuple(live if e is found else e for e in history.entries))
    window.studio.shown.show(str(found.path))


SETUP = ("model", "data", "settings", "memory")
EVERY = (*SETUP, "live", "chat", "held_out", "export", "files")
STATES: dict[str, tuple[Callable[[MainWindow], None], tuple[str, ...]]] = {
    "draft": (draft, EVERY),
    "live": (running, ("live", "chat", "setup")),
    "pausing": (pausing, ("live",)),
    "paused": (paused, ("live",)),
    "failed": (failed, ("live",)),
    "wrong": (wrong, ("settings", "data")),
    **DATA_STATES,
    "long": (long_names, ("model", "data", "settings")),
    "quality-running": (quality_running, ("model",)),
    "quality": (quality_measured, ("model",)),
    "quality-picture": (quality_picture, ("model",)),
}
RUN_STATES: dict[str, tuple[Callable[[MainWindow], None], tuple[str, ...]]] = {
    "finished-run": (of_run("finished"), ("live", "setup", "chat", "held_out", "export", "files")),
    "stopped-run": (of_run("stopped"), ("live", "export")),
    "failed-run": (of_run("failed"), ("live", "files")),
    "crashed-run": (of_run("crashed"), ("live",)),
    "exported": (exported, ("export",)),
    "exported-below": (exported_below, ("export",)),
    "queued": (queued, ("model", "live")),
    "several": (several, ("compare", "chat")),
    "foreign": (foreign, ("live", "setup")),
}
"""Of runs that are kept."""


PLAIN = ("draft", "live", "failed", "finished-run", "stopped-run", "failed-run", "queued", "foreign")
"""The states of a run as such: of each, every screen is looked at."""


def others_of(window: MainWindow, state: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The tabs that the choice in sight has beside those that are `known`."""
    tabs = window.tabs
    return tuple(
        name
        for name, tab in tabs.tabs.items()
        if state in PLAIN and tabs.kind in tab.of and name not in known
    )


def make_queued() -> None:
    """A draft that waits."""
    queue.add(plans.create(TrainingConfig()))


ERROR = {
    "code": "memory.gpu", "message": "the GPU is out of memory even at micro-batch 1",
    "hint": "shorten data.seq_len, lower lora.rank, or train fewer modules",
}  # fmt: skip


def make_runs() -> None:
    for name, state, before, after in (
        ("first-look", "finished", 3.168, 0.449), ("poems", "crashed", 2.9, 1.8), (LONG.replace("/", "-"), "failed", 3.0, None),
        ("halfway", "stopped", 3.0, 1.2),
    ):  # fmt: skip
        folder = RunFolder.create(TrainingConfig())
        named = folder.path.with_name(name)
        folder.path.rename(named)
        found = RunFolder(named)
        found.adapter_dir.mkdir(exist_ok=True)
        if state == "finished":
            (found.adapter_dir / "adapter_model.safetensors").write_bytes(b"x")
        found.update(
            state=state,
            loss_before=before,
            loss_after=after,
            last_step=45,
            plan={"total_steps": 60},
            best_step=40,
            train_seconds=840.0,
            error=ERROR if state == "failed" else None,
        )
        if state in ("stopped", "failed"):
            add_checkpoint(found, 40)
        for event in told.whole_run(45):
            if not isinstance(event, ev.MemorySampled):
                found.append(event)


def try_chat(window: MainWindow, count: int = 3, state: str = "ready") -> None:
    """Three sides, or more, with long answers and a word that cannot be broken."""
    first, *others = [told_of_try.make_run(n, created=9.0 - i) for i, n in enumerate(TRY_RUNS[: count - 1])]
    chat = window.tabs.controllers["chat"].chat
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
    window.tabs.controllers["chat"].paint()


def try_chat_six(window: MainWindow) -> None:
    try_chat(window, 6, "answering")


def try_failed(window: MainWindow) -> None:
    chat = window.tabs.controllers["chat"].chat
    chat.begin()
    chat.fold(ev.RunFailed("export.wrong_base", f"the base in /models/{LONG} is not the one", "get the original revision of the base model"))  # fmt: skip
    window.tabs.controllers["chat"].paint()


def try_sets(window: MainWindow, *, is_running: bool = False) -> None:
    runs = [told_of_try.make_run(name, created=9.0 - i) for i, name in enumerate(TRY_RUNS[:3])]
    prompts = (told_of_try.BOOTS, "Say " + "very " * 40 + "much", "Hi")
    job = ReplayJob([str(run.path) for run in runs], prompts)
    fold = window.tabs.controllers["chat"].sets.fold
    fold.show_plan(replay_plan.plan_of(job), prompts)
    for side in ("base", *(str(run.path) for run in runs[:2])):
        fold.fold(ev.AnswerFinished(0, side, told_of_try.ANSWER, 21, 0.7, True))
        fold.fold(ev.AnswerFinished(1, side, "Much " * 60, 60, 0.7, False))
    if is_running:
        fold.begin(again=False)
        fold.fold(ev.PhaseChanged("generating", "Asking 6 questions"))
        fold.fold(ev.Progressed("generating", 4, 12, "answers"))
    window.tabs.controllers["chat"].sets.paint()


def try_sets_running(window: MainWindow) -> None:
    try_sets(window, is_running=True)


def try_held_out(window: MainWindow) -> None:
    run = told_of_try.make_run("first-look")
    held_out = window.tabs.controllers["held_out"].held_out
    held_out.fold.show(told_of_try.predictions(run))
    held_out._run = str(run.path)
    held_out.paint()


def try_held_out_running(window: MainWindow) -> None:
    try_held_out(window)
    held_out = window.tabs.controllers["held_out"].held_out
    held_out.fold.begin("first-look")
    held_out.fold.fold(ev.PhaseChanged("evaluating", "Scoring 40 held-out rows"))
    held_out.paint()


def try_timeline(window: MainWindow) -> None:
    run = told_of_try.make_run("first-look")
    run.append(ev.SampleAnswered(60, told_of_try.BOOTS, "long " * 80, 80, 1.0))
    timeline = window.tabs.controllers["held_out"].timeline
    timeline._found, timeline._run = timelines(run.metrics()), str(run.path)
    timeline.paint()


TRY_RUNS = ("first-look", LONG.replace("/", "-"), "third", "fourth", "fifth")
TRY_STATES: dict[str, tuple[str, str, Callable[[MainWindow], None]]] = {
    "nothing": ("chat", "sets", idle),
    "nothing-held-out": ("held_out", "rows", idle),
    "nothing-timeline": ("held_out", "timeline", idle),
    "chat": ("chat", "chat", try_chat),
    "chat-six": ("chat", "chat", try_chat_six),
    "failed": ("chat", "chat", try_failed),
    "sets": ("chat", "sets", try_sets),
    "sets-running": ("chat", "sets", try_sets_running),
    "held-out": ("held_out", "rows", try_held_out),
    "held-out-running": ("held_out", "rows", try_held_out_running),
    "timeline": ("held_out", "timeline", try_timeline),
}
