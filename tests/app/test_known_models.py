"""Browsing the known models in the window: what is shown, in what order, and choosing one."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app.tabs.model.known import BY_SIZE, Judged, Wish, heads, judged, shown, summary
from app.tabs.model.known_dialog import KnownModelsDialog
from qlora_engine.config import TrainingConfig
from qlora_engine.errors import EngineError
from qlora_engine.models import known
from tests.app.conftest import MakeWindow
from tests.app.geometry import clipped, unnamed, visible


def on_a_card(*cached: str) -> Judged:
    found = judged(TrainingConfig(), "RTX 3070 8GB")
    return Judged(found.choices, found.rows, found.room, frozenset(cached))


def test_filters_leave_what_they_say() -> None:
    found = on_a_card("Qwen/Qwen3-0.6B")
    everything = shown(found, Wish())
    assert len(everything) == len(known.known_models()) == len(found.rows)
    fitting = shown(found, Wish(only_fitting=True))
    assert "qwen3-0.6b" in fitting
    assert "llama-3.3-70b" in everything - fitting
    assert all("qwen3" in name for name in shown(found, Wish(query="qwen3 apache")))
    chats = {model.name for model in known.known_models() if model.is_chat}
    assert shown(found, Wish(only_chat=True)) == chats
    assert shown(found, Wish(only_here=True)) == {"qwen3-0.6b"}


def test_a_row_has_a_text_and_a_key_of_every_column() -> None:
    found = on_a_card()
    assert all(len(row.texts) == len(row.keys) == len(heads()) for row in found.rows)
    sizes = [row.keys[BY_SIZE] for row in found.rows]
    assert sizes == sorted(sizes, reverse=True), "the largest first"
    too_large = next(row for row in found.rows if row.name == "llama-3.3-70b")
    assert too_large.texts[6].endswith("too large")
    assert too_large.texts[7] == "none"


def test_the_summary_says_by_what_is_judged() -> None:
    assert "RTX 3070 8GB" in summary(on_a_card(), 3)
    assert summary(None, 0).startswith("Looking")


def opened(qtbot: QtBot, make_window: MakeWindow) -> KnownModelsDialog:
    window = make_window()
    window.tabs.screens["model"].browse_asked.emit()
    dialog = window.tabs.controllers["model"].known.dialog
    assert dialog is not None
    qtbot.waitUntil(lambda: dialog.order.rowCount() > 0, timeout=30_000)
    return dialog  # type: ignore[no-any-return]


def test_it_opens_with_what_fits(qtbot: QtBot, make_window: MakeWindow) -> None:
    """The first one shown can be used at once."""
    dialog = opened(qtbot, make_window)
    fitting = dialog.order.rowCount()
    assert dialog.fits.isChecked()
    assert "too large" not in dialog.order.index(0, 6).data()
    dialog.fits.setChecked(False)
    assert fitting < dialog.order.rowCount() == len(known.known_models())


def test_a_list_that_cannot_be_judged_says_why(qtbot: QtBot, make_window: MakeWindow, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def failing(*_: object) -> Judged:
        raise EngineError("gpu.unknown", "there is no such GPU", "choose another")

    monkeypatch.setattr("app.tabs.model.known_controller.judged", failing)
    window = make_window()
    window.tabs.screens["model"].browse_asked.emit()
    dialog = window.tabs.controllers["model"].known.dialog
    qtbot.waitUntil(lambda: dialog.summary.text() == "There is no such GPU. Choose another.", timeout=30_000)


def test_one_is_found_ordered_and_chosen_by_keyboard(qtbot: QtBot, make_window: MakeWindow) -> None:
    dialog = opened(qtbot, make_window)
    QTest.keyClicks(dialog.query, "smollm2")
    qtbot.waitUntil(lambda: 1 < dialog.order.rowCount() < 20, timeout=10_000)
    dialog.table.sortByColumn(BY_SIZE, Qt.SortOrder.AscendingOrder)
    assert dialog.order.index(0, 0).data().startswith("smollm2-135m"), "by number, not by the text of it"
    dialog.table.setCurrentIndex(dialog.order.index(0, 0))
    name = dialog.name
    dialog.table.setFocus()
    QTest.keyClick(dialog.table, Qt.Key.Key_Return)
    window = dialog.parent()
    assert window.studio.workspace.job.config.model.name == name  # type: ignore[attr-defined]
    assert not dialog.isVisible()


def test_nothing_of_it_is_cut_off_or_unnamed(qtbot: QtBot, make_window: MakeWindow) -> None:
    dialog = opened(qtbot, make_window)
    dialog.resize(1000, 600)
    QApplication.processEvents()
    seen = list(visible(dialog))
    assert not clipped(seen)
    assert not unnamed(seen)
    dialog.query.setText("no model has this name")
    qtbot.waitUntil(lambda: dialog.order.rowCount() == 0, timeout=10_000)
    assert not dialog.use.isEnabled()
