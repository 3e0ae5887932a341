"""The window as a person uses it, with engines that do what the test says."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QAbstractButton, QApplication, QLineEdit, QMessageBox
from pytestqt.qtbot import QtBot

from app import dialogs
from app.tab import DRAFT
from app.tabs import all_tabs
from app.window import FOLD_BELOW, MainWindow
from qlora_engine import config_io, paths
from qlora_engine import events as ev
from qlora_engine.config import ModelSettings, TrainingConfig
from qlora_engine.jobs import DataReportJob, ExportJob, PrepareModelJob, ResumeJob, TrainJob
from qlora_engine.models import catalog
from qlora_engine.models.parts import ModelFacts
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import awake
from tests.app import events_of_a_run as told
from tests.app.conftest import MakeWindow, engine_of
from tests.support.run_folders import add_checkpoint

LEFT = Qt.MouseButton.LeftButton


def answer_with(caption: str) -> QTimer:
    """Presses a button of the next question, as soon as it is open."""
    timer = QTimer(interval=50)

    def look() -> None:
        box = QApplication.activeModalWidget()
        if isinstance(box, QMessageBox) and box.isVisible():
            timer.stop()
            next(b for b in box.buttons() if b.text() == caption).click()

    timer.timeout.connect(look)
    timer.start()
    return timer


def start(qtbot: QtBot, window: MainWindow) -> None:
    qtbot.waitUntil(window.card.start.isEnabled, timeout=10_000)
    qtbot.mouseClick(window.card.start, LEFT)
    qtbot.waitUntil(lambda: window.studio.trainer.run.state == "starting")


def state_of(window: MainWindow) -> str:
    return window.studio.trainer.run.state


def test_every_tab_is_reachable_by_click_and_by_key(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    tabs = [tab for tab in all_tabs() if DRAFT in tab.of]
    assert len(tabs) == 9
    for tab in tabs:
        qtbot.mouseClick(window.bar.items[tab.heading], LEFT)
        screen = window.tabs.screens[window.tabs.current]
        if tab.name != window.tabs.current:
            qtbot.mouseClick(screen.siblings._buttons[tab.name], LEFT)
        assert window.tabs.current == tab.name
        assert window.stack.currentWidget() is window.tabs.screens[tab.name]
    for number, tab in enumerate(tabs, start=1):
        qtbot.keyClick(window, Qt.Key(Qt.Key.Key_0 + number), Qt.KeyboardModifier.ControlModifier)
        assert window.tabs.current == tab.name
    qtbot.mouseClick(window.bar.items["Setup"], LEFT)
    assert window.tabs.current == "memory", "a heading leads back to where one was under it"


def test_a_run_from_start_to_end_is_painted(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    start(qtbot, window)
    assert window.tabs.current == "live"
    engine = engine_of(qtbot, TrainJob)
    assert isinstance(engine.job, TrainJob)
    assert engine.job.config["model"]["name"] == "starter"
    engine.tell(*told.whole_run(40))
    screen = window.tabs.screens["live"]
    qtbot.waitUntil(lambda: screen.numbers["Step"].value.text() == "40 / 40", timeout=10_000)
    qtbot.waitUntil(lambda: screen.charts is not None, timeout=20_000)
    qtbot.waitUntil(lambda: len(screen.charts.loss._data["loss"][0]) == 40)
    assert "Checkpoint at step 40 saved" in screen.log.toPlainText()
    assert not window.card.isVisible()
    assert window.head.name.text() == "demo"
    assert window.head.sentence.text() == "Training, step 40 of 40, 0 s left"
    engine.tell(told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
    assert window.banner.text.startswith("Finished. Held-out loss 0.9396")
    assert screen.outcome.text.startswith("Learned: held-out loss 3.168 before, 0.9396 after (-70 %)")
    assert window.head.primary.text() == "Try it"


def test_pause_continue_and_wishes_reach_the_engine(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    start(qtbot, window)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.step(1))
    qtbot.waitUntil(lambda: window.head.pause.isEnabled())
    qtbot.mouseClick(window.head.pause, LEFT)
    engine.tell(ev.Paused(1))
    qtbot.waitUntil(lambda: window.head.pause.text() == "Continue")
    qtbot.mouseClick(window.head.pause, LEFT)
    engine.tell(ev.Continued(1))
    qtbot.waitUntil(lambda: state_of(window) == "running")
    screen = window.tabs.screens["live"]
    qtbot.waitUntil(screen.evaluate.isEnabled)
    qtbot.mouseClick(screen.evaluate, LEFT)
    assert [c["command"] for c in engine.commands] == ["pause", "continue", "evaluate"]
    engine.tell(told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


@pytest.mark.parametrize(
    ("answer", "stops"),
    [("Stop and save", ["save"]), ("Stop without saving", ["discard"]), ("Keep training", [])],
)
def test_stop_asks_three_ways(qtbot: QtBot, make_window: MakeWindow, answer: str, stops: list[str]) -> None:
    window = make_window()
    start(qtbot, window)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.step(7))
    qtbot.waitUntil(lambda: window.studio.trainer.run.last_step is not None)
    timer = answer_with(answer)
    qtbot.mouseClick(window.head.stop, LEFT)
    assert not timer.isActive()
    assert engine.stops == stops
    if stops:
        qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
        assert "Stopped" in window.banner.text
        assert ("and saved" in window.banner.text) == (stops == ["save"])
    else:
        assert state_of(window) == "running"
        engine.tell(told.finished())
        qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


def test_closing_in_mid_run_asks_and_saves_before_it_goes(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    start(qtbot, window)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.step(7))
    qtbot.waitUntil(lambda: state_of(window) == "running")
    timer = answer_with("Keep training")
    assert not window.close()
    assert not timer.isActive()
    assert window.isVisible()
    assert engine.stops == []
    timer = answer_with("Save and close")
    window.close()
    assert not timer.isActive()
    qtbot.waitUntil(lambda: not window.isVisible(), timeout=10_000)
    assert engine.stops[0] == "save"
    assert window.studio.settings.value.unfinished == "/runs/demo"


def test_a_failed_run_says_what_and_what_next(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    start(qtbot, window)
    engine_of(qtbot, TrainJob).tell(
        ev.RunFailed("memory.gpu", "The GPU is out of memory", "use a shorter sequence length")
    )
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
    assert "The GPU is out of memory" in window.banner.text
    window.go_to("model")
    assert window.card.start.isVisible()
    assert window.card.start.isEnabled()


def test_a_wrong_setting_blocks_start_and_leads_to_its_field(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    window.go_to("settings")
    field = window.tabs.screens["settings"].forms[0].rows["lora.rank"]
    field._editor.setText("0")
    field._editor.editingFinished.emit()
    assert not window.card.start.isEnabled()
    assert window.card.headline.text() == "1 to fix"
    assert field._problem.text() == "Must be at least 1, not 0"
    assert window.bar.items["Setup"].accessibleName() == "Setup, needs attention"
    window.go_to("model")
    window.card.problem_chosen.emit("settings", "lora.rank")
    assert window.tabs.current == "settings"
    field._editor.setText("eight")
    field._editor.editingFinished.emit()
    assert "whole number" in field._problem.text()
    field._editor.setText("16")
    field._editor.editingFinished.emit()
    assert window.card.start.isEnabled()


def test_every_editor_gives_back_what_it_is_given() -> None:
    from app.presenters.typed import parsed, shown
    from qlora_engine.config import all_knobs, get_value

    for path, knob in all_knobs().items():
        for config in (TrainingConfig(), *(config_io.load_preset(p.name) for p in config_io.presets())):
            value = get_value(config, path)
            if isinstance(value, bool) or knob.choices:
                continue
            assert parsed(knob, shown(value)) == value, path


def test_settings_are_kept_for_the_next_start(qtbot: QtBot, make_window: MakeWindow) -> None:
    first = make_window()
    first.studio.workspace.job.edit("lora.rank", 24)
    first.studio.close()
    second = make_window()
    assert second.studio.workspace.job.config.lora.rank == 24


def test_a_broken_settings_file_is_no_reason_not_to_start(home: Path, make_window: MakeWindow) -> None:
    home.mkdir(parents=True)
    (home / "window.json").write_text("{ this is no JSON", encoding="utf-8")
    assert make_window().studio.workspace.job.config.model.name == "starter"


def interrupted(home: Path, step: int = 40) -> RunFolder:
    """A run whose engine was killed: it says running, its process is gone, its checkpoint is whole."""
    folder = RunFolder.create(TrainingConfig())
    add_checkpoint(folder, step)
    folder.update(state="running", pid=2**22 + 1, pid_started=1.0, last_step=step, plan={"total_steps": 60})
    return folder


def test_a_run_that_broke_off_is_offered_at_the_next_start(
    qtbot: QtBot, home: Path, make_window: MakeWindow
) -> None:
    folder = interrupted(home)
    window = make_window(loads=True)
    qtbot.waitUntil(lambda: "was interrupted at step 40 of 60" in window.banner.text, timeout=20_000)
    resume = next(b for b in window.banner.findChildren(type(window.card.start)) if b.text() == "Resume")
    qtbot.mouseClick(resume, LEFT)
    engine = engine_of(qtbot, ResumeJob)
    assert engine.job == ResumeJob(str(folder.path))
    assert window.banner.text == ""
    engine.tell(told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        (told.finished(), None),
        (ev.RunStopped("stopped by the user", True, {"step": 7}), None),
        (
            ev.RunFailed("engine.killed", "The engine was ended by the system (SIGKILL)", "resume"),
            "/runs/demo",
        ),
    ],
    ids=["finished", "stopped", "killed"],
)
def test_a_run_is_remembered_until_it_has_ended(
    qtbot: QtBot, make_window: MakeWindow, end: ev.Event, kept: str | None
) -> None:
    window = make_window()
    start(qtbot, window)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.step(7))
    qtbot.waitUntil(lambda: window.studio.settings.value.unfinished == "/runs/demo")
    engine.tell(end)
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)
    assert window.studio.settings.value.unfinished == kept


def test_what_an_older_question_says_is_dropped(qtbot: QtBot, make_window: MakeWindow) -> None:
    from app.services.engine_thread import JobRunner, NewestJob
    from tests.app.conftest import ScriptedEngine

    job = NewestJob(JobRunner(ScriptedEngine))
    heard: list[ev.Event] = []
    job.event_arrived.connect(heard.append)
    job.ask(TrainJob({"number": 1}))
    old = engine_of(qtbot, TrainJob)
    job.ask(TrainJob({"number": 2}))
    old.tell(ev.RunFinished({"number": 1}))
    qtbot.waitUntil(lambda: engine_of(qtbot, TrainJob) is not old, timeout=10_000)
    engine_of(qtbot, TrainJob).tell(ev.RunFinished({"number": 2}))
    qtbot.waitUntil(lambda: not job.is_wanted)
    assert heard == [ev.RunFinished({"number": 2})]


def test_nothing_of_another_model_is_shown_while_the_chosen_one_is_looked_at(
    qtbot: QtBot, make_window: MakeWindow
) -> None:
    work = make_window().studio.workspace
    assert work.base.facts is not None
    work.job.choose_model("llama-65b")
    assert (work.base.facts, work.memory.own) == (None, None)
    qtbot.waitUntil(lambda: work.memory.own is not None, timeout=10_000)
    assert work.memory.own is not None
    assert work.memory.own.estimate.model == "llama-65b"


def test_one_click_enlarges_the_embeddings_where_the_tokenizer_is_told_to_be_larger(
    qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def facts_for(model: ModelSettings) -> ModelFacts:
        rows = 32_006 if model.resize_embeddings else 32_000
        found = replace(catalog.facts("llama-7b"), path="/m", vocab_size=rows, tokenizer_rows=32_006)
        return replace(found, new_rows=rows - 32_000)

    monkeypatch.setattr(catalog, "facts_for", facts_for)
    window = make_window()
    work, screen = window.studio.workspace, window.tabs.screens["model"]
    work.base.look()
    qtbot.waitUntil(lambda: "32,006" in screen.state_notice.text, timeout=10_000)
    (act,) = [b for b in screen.state_notice.findChildren(QAbstractButton) if b.text() == "Enlarge them"]
    qtbot.mouseClick(act, LEFT)
    assert work.job.config.model.resize_embeddings
    qtbot.waitUntil(lambda: work.base.facts is not None and work.base.facts.new_rows == 6, timeout=10_000)
    assert "32,006" not in screen.state_notice.text


def test_known_models_are_offered_while_a_name_is_typed(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    field = next(one for one in window.findChildren(QLineEdit) if one.accessibleName() == "Model by name")
    qtbot.waitUntil(lambda: field.completer() is not None, timeout=10_000)
    completer = field.completer()
    completer.setCompletionPrefix("30B-a3")
    found = [completer.completionModel().index(row, 0) for row in range(completer.completionCount())]
    assert "qwen3-30b-a3b" in [index.data(Qt.ItemDataRole.UserRole) for index in found]
    assert any(
        "30.53 B (3.35 B a token) \u00b7 tuned to chat \u00b7 40,960 tokens" in index.data()
        for index in found
    )


def test_the_failure_to_get_one_model_is_not_told_of_another(qtbot: QtBot, make_window: MakeWindow) -> None:
    work = make_window().studio.workspace
    work.base.fetch_now()
    engine_of(qtbot, PrepareModelJob).tell(ev.RunFailed("hub.gated", "org/a needs an agreement", "accept it"))
    qtbot.waitUntil(lambda: work.base.fetch.error is not None)
    work.job.choose_model("llama-7b")
    assert work.base.fetch.error is None


def test_an_export_shows_each_step_of_its_proof(qtbot: QtBot, home: Path, make_window: MakeWindow) -> None:
    folder = RunFolder.create(TrainingConfig())
    folder.adapter_dir.mkdir()
    (folder.adapter_dir / "adapter_model.safetensors").write_bytes(b"x")
    folder.update(state="finished", loss_before=3.1, loss_after=0.5)
    window = make_window(loads=True)
    qtbot.waitUntil(lambda: window.studio.history.is_read, timeout=20_000)
    window.open_run(str(folder.path), "export")
    screen = window.tabs.screens["export"]
    qtbot.waitUntil(screen.export.isEnabled, timeout=20_000)
    qtbot.mouseClick(screen.export, LEFT)
    engine = engine_of(qtbot, ExportJob)
    assert isinstance(engine.job, ExportJob)
    assert (engine.job.run_dir, engine.job.format) == (str(folder.path), "merged")
    assert engine.job.options == {"verify": True, "dtype": "bf16"}
    engine.tell(
        ev.PhaseChanged("exporting", "Writing"), ev.Progressed("exporting", 5, 10, "tensors"),
        ev.CheckFinished("loads with plain transformers", True, "LlamaForCausalLM"),
        ev.RunFinished({"path": "/out", "bytes": 2**28, "is_proven": True}),
    )  # fmt: skip
    qtbot.waitUntil(lambda: not window.studio.jobs["export"].is_running)
    assert screen.outcome.text() == "Written and proven: 256 MiB in /out"
    assert screen.checks.count() == 1


def test_the_data_report_is_forgotten_when_the_data_changes(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    work = window.studio.workspace
    work.watch.check()
    engine = engine_of(qtbot, DataReportJob)
    report = {"seq_len": 80, "train_rows": 360, "held_out_rows": 40, "rows_dropped": 0, "drops": [], "notices": [],
              "train_tokens": 22719, "trained_tokens": 7948, "truncated_rows": 0, "is_automatic_length": True,
              "length_p50": 62, "length_p95": 71, "length_max": 75, "format": "alpaca", "format_reason": "columns",
              "columns": {}, "template": "own", "template_reason": "it has one", "origin": "starter", "sha256": "ab" * 32}  # fmt: skip
    engine.tell(ev.RunFinished({"report": report, "rows": []}))
    qtbot.waitUntil(lambda: work.data.report is not None)
    assert work.memory.seq_len == 80
    work.job.choose_data("/somewhere/else.jsonl")
    assert work.data.report is None
    assert work.memory.seq_len == 512


def test_the_memory_follows_every_setting_at_once(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    work = window.studio.workspace
    window.go_to("memory")
    before = work.memory.own.bar("double_quant").device_likely if work.memory.own else 0
    with qtbot.waitSignal(work.memory.changed, timeout=5000):
        work.job.edit("data.seq_len", 2048)
    assert work.memory.own is not None
    assert work.memory.own.bar("double_quant").device_likely > 2 * before
    with qtbot.waitSignal(work.memory.changed, timeout=5000):
        work.memory.choose_gpu("RTX 4090")
    assert "RTX 4090" in window.tabs.screens["memory"].verdict.text()


def test_rows_at_once_are_those_the_run_will_choose(make_window: MakeWindow) -> None:
    from qlora_engine.memory import estimate, gpus

    work = make_window().studio.workspace
    work.job.edit("training.effective_batch", 6)
    assert (work.job.device, work.memory.micro_batch) == ("cpu", 2)
    work.job.edit("training.effective_batch", 16)
    work.memory.choose_gpu("RTX 4090")
    assert work.base.facts is not None
    usable = gpus.find("RTX 4090").usable_bytes
    wanted = estimate.recommend_micro_batch(
        work.base.facts, work.job.config, seq_len=work.memory.seq_len, usable_bytes=usable
    )
    assert work.memory.micro_batch == wanted > 1
    work.job.edit("training.micro_batch", 1)
    assert work.memory.micro_batch == 1


def test_a_narrow_window_folds_the_run_card_into_a_button(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    assert not window.head.primary.isVisible(), "one Start is enough"
    window.resize(FOLD_BELOW - 100, 700)
    qtbot.waitUntil(lambda: not window.card.isVisible())
    assert window.head.primary.text() == "Start training"
    qtbot.mouseClick(window.head.card, LEFT)
    assert window.card.isVisible()
    window.resize(FOLD_BELOW + 100, 800)
    qtbot.waitUntil(lambda: window.card.isVisible() and not window.head.card.isVisible())


def test_the_theme_and_the_engine_are_chosen_in_settings_and_kept(make_window: MakeWindow) -> None:
    from app import theme
    from qlora_engine.client import InlineEngine

    window = make_window(theme="dark")
    dialog = dialogs.SettingsDialog(window, window.studio.settings.value, window.beside.choose_setting)
    try:
        dialog.theme._buttons["light"].click()
        assert not theme.tokens().is_dark
        dialog.engine._buttons["inline"].click()
    finally:
        dialog.theme._buttons["dark"].click()
    assert theme.tokens().is_dark
    assert (window.studio.settings.value.theme, window.studio.settings.value.engine) == ("dark", "inline")
    assert all(job.make_engine is InlineEngine for job in window.studio.jobs.values())


def test_the_language_of_numbers_is_chosen_in_settings_for_the_next_start(
    make_window: MakeWindow, qapp: QApplication
) -> None:
    from app import main
    from app.presenters import numerals
    from app.services.number_style import style_of

    window = make_window()
    window.beside.open_settings()
    form = window.beside.settings.numbers
    assert form.language.currentText() == "As the system"
    form.language.setCurrentIndex(form.language.findData("de_DE"))
    form.language.activated.emit(form.language.currentIndex())
    assert form.example.text().startswith("1.234.567   1.234,5")
    assert numerals.style() == numerals.ENGLISH, "texts that are shown already keep theirs"
    assert window.studio.settings.value.numbers == "de_DE"
    try:
        again = main.make_window(qapp)
        assert numerals.style() == style_of("de_DE")
        again.studio.close()
        again.deleteLater()
    finally:
        numerals.use(numerals.ENGLISH)


@pytest.mark.parametrize(
    ("reason", "words"),
    [("", "does not go to sleep by itself"), ("nobody can be asked", "may go to sleep during a run: nobody can be asked.")],
)  # fmt: skip
def test_the_settings_say_whether_the_computer_stays_awake(
    make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch, reason: str, words: str
) -> None:
    monkeypatch.setattr(awake, "why_not", lambda: reason)
    window = make_window()
    window.beside.open_settings()
    assert window.beside.settings is not None
    assert words in window.beside.settings.sleep.text()
    assert window.beside.settings.sleep.isVisibleTo(window.beside.settings)


def test_the_desktop_s_wish_for_contrast_is_followed_at_once(
    make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import theme

    window = make_window(theme="system")
    monkeypatch.setattr(theme, "wants_contrast", lambda: True)
    scheme_changed = QGuiApplication.styleHints().colorSchemeChanged
    try:
        scheme_changed.emit(Qt.ColorScheme.Dark)
        assert theme.tokens() is theme.CONTRAST
        window.beside.choose_setting(theme="dark")
        scheme_changed.emit(Qt.ColorScheme.Light)
        assert theme.tokens() is theme.DARK, "what is chosen by hand stays"
    finally:
        window.beside.choose_setting(theme="dark")


def test_the_home_folder_is_chosen_in_settings_for_the_next_start(
    make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from app.widgets import settings_parts

    monkeypatch.setattr(paths, "home_file", lambda: tmp_path / "config" / "home.txt")
    window = make_window()
    window.beside.open_settings()
    assert window.beside.settings is not None
    form = window.beside.settings.home
    assert form.place.text() == str(paths.home())
    assert "QLORA_HOME" in form.told.text()
    assert not form.choose.isEnabled(), "the environment decides here"
    form.show_home(paths.home(), paths.home(), paths.usual_home(), is_told=False)
    answers = iter((str(tmp_path), str(tmp_path / "not there")))
    monkeypatch.setattr(settings_parts.QFileDialog, "getExistingDirectory", lambda *_: next(answers))
    form.choose.click()
    assert paths.next_home() == tmp_path
    form.show_home(paths.home(), paths.next_home(), paths.usual_home(), is_told=False)
    assert str(tmp_path) in form.told.text()
    form.choose.click()
    assert "choose a folder you can write to" in form.told.text()
    form.show_home(paths.home(), paths.next_home(), paths.usual_home(), is_told=False)
    form.usual.click()
    assert paths.next_home() == paths.usual_home()


def test_help_opens_at_the_page_one_is_on(qtbot: QtBot) -> None:
    dialog = dialogs.HelpWindow()
    qtbot.addWidget(dialog)
    dialog.open_at("memory")
    tabs = dialog.findChildren(dialogs.QTabWidget)[0]
    assert tabs.tabText(tabs.currentIndex()) == "Memory"
    assert tabs.count() == len(dialogs.HELP_PAGES)


def test_a_storm_of_events_does_not_hold_up_the_window(qtbot: QtBot, make_window: MakeWindow) -> None:
    window = make_window()
    start(qtbot, window)
    engine = engine_of(qtbot, TrainJob)
    engine.tell(told.started(), told.plan(5000))
    engine.tell(*(told.step(number, 5000) for number in range(1, 5001)))
    longest, last = 0.0, time.perf_counter()

    def all_there() -> bool:
        nonlocal longest, last
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        return len(window.studio.trainer.run.series["loss"]) == 5000

    qtbot.waitUntil(all_there, timeout=30_000)
    assert longest < 2.0
    engine.tell(told.finished())
    qtbot.waitUntil(lambda: not window.studio.trainer.is_running)


def test_a_tab_first_seen_during_a_run_says_so(make_window: MakeWindow) -> None:
    window = make_window()
    run = window.studio.trainer.run
    run.begin()
    for event in told.whole_run(5):
        run.fold(event)
    assert "live" not in window.tabs.screens
    window.studio.shown.show_own()
    window.go_to("live")
    assert window.tabs.screens["live"].sentence.text() == "The run is under way"
