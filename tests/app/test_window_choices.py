"""What is chosen in the window, for a run and in the settings, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QAbstractButton, QApplication, QLineEdit
from pytestqt.qtbot import QtBot

from app import dialogs
from app.window import FOLD_BELOW
from qlora_engine import config_io, paths
from qlora_engine import events as ev
from qlora_engine.config import ModelSettings, TrainingConfig
from qlora_engine.jobs import DataReportJob, ExportJob, PrepareModelJob
from qlora_engine.models import catalog
from qlora_engine.models.parts import ModelFacts
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import awake
from tests.app.acts import LEFT
from tests.app.conftest import MakeWindow, engine_of


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
    acts = [b for b in screen.state_notice.findChildren(QAbstractButton) if b.text() == "Enlarge them"]
    qtbot.mouseClick(acts[-1], LEFT)  # the one before, if it was said twice, is about to go
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
        "30.53\u00a0B (3.35\u00a0B a token) \u00b7 tuned to chat \u00b7 40,960 tokens" in index.data()
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
    assert screen.outcome.text() == "Written and proven: 256\u00a0MiB in /out"
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
    assert work.memory.length.tokens == 80
    work.job.choose_data("/somewhere/else.jsonl")
    assert work.data.report is None
    assert work.memory.length.tokens == 512


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
        work.base.facts, work.job.config, seq_len=work.memory.length.tokens, usable_bytes=usable
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


def test_an_engine_is_kept_ready_unless_the_person_does_not_want_it(make_window: MakeWindow) -> None:
    window = make_window()
    dialog = dialogs.SettingsDialog(window, window.studio.settings.value, window.beside.choose_setting)
    assert dialog.ready.isChecked()
    dialog.ready.click()
    assert not window.studio.settings.value.keeps_ready


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
