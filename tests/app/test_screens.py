"""Every screen in named states, at two sizes, in every theme, and with labels two fifths longer: nothing is cut off, covered or
outside, every text is at 4.5:1, Tab goes as one reads, every control has a name, and a run can be started from everywhere.

One window goes through all states: `QLORA_SCREENS=folder` keeps the pictures, to be looked at by eye. `make test-screens` goes through
all themes, sizes, lengths, and every screen of every state; the suite a sample that changes with the date. A 4K screen at 200 %
has a process of its own, by `test_screens_4k.py`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PySide6.QtCore import QEvent
from PySide6.QtGui import QFont
from PySide6.QtWidgets import QApplication, QLabel, QLineEdit, QWidget
from pytestqt.qtbot import QtBot

from app import theme
from app.window import MainWindow, first_size
from qlora_engine import paths
from tests.app.conftest import MakeWindow
from tests.app.contrast import faint
from tests.app.focus_order import backwards
from tests.app.geometry import clipped, problems_of, unnamed, visible
from tests.app.window_states import RUN_STATES, STATES, TRY_STATES, make_queued, make_runs, others_of

PICTURES = os.environ.get("QLORA_SCREENS")
LAPTOP, SMALL, LARGE = (1366, 768), (1024, 680), (1920, 1080)
"""The last is a 4K screen at 200 %."""
IS_SCALED = os.environ.get("QT_SCALE_FACTOR") == "2"
SIZES = (LARGE,) if IS_SCALED else (SMALL, LAPTOP)
LONGER = 1.4
IS_WHOLE = os.environ.get("QLORA_ALL_SCREENS") == "1"
DAY = int(time.time() // 86_400)
DAYS = 7
"""So many days take the suite through what `make test-screens` goes through at once."""
WORKS = ("shown", "compare", "picture", "setup", "files", "ending")
"""What is read of runs, off the GUI thread."""
Look = tuple[str, float, tuple[tuple[int, int], ...]]


def looks() -> dict[str, Look]:
    """Theme, length of labels and sizes. In the suite a sample: places hang on sizes and labels, so that one theme shows them,
    and of the others one each day shows its colours."""
    every: dict[str, Look] = {
        f"{mode}{name}": (mode, stretch, SIZES)
        for mode in theme.THEMES
        for name, stretch in (("", 1.0), ("-long-labels", LONGER))
    }
    if IS_WHOLE:
        return every
    if IS_SCALED:
        today = list(every)[DAY % len(every)]
        return {today: every[today]}
    other = ("light", "contrast")[DAY % 2]
    return {
        "dark": ("dark", 1.0, SIZES),
        other: (other, 1.0, (LAPTOP,)),
        "dark-long-labels": ("dark", LONGER, SIZES),
    }


LOOKS = looks()


@pytest.fixture(params=LOOKS)
def look(
    request: pytest.FixtureRequest, qapp: QApplication, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, tuple[tuple[int, int], ...]]]:
    """A theme; wider letters make every text as long as in a language that needs more of them."""
    mode, stretch, sizes = LOOKS[request.param]
    if stretch != 1.0:
        usual = theme.font

        def wide(*how: object) -> QFont:
            found = usual(*how)  # type: ignore[arg-type]
            found.setLetterSpacing(QFont.SpacingType.PercentageSpacing, 100 * stretch)
            return found

        monkeypatch.setattr(theme, "font", wide)
    theme.apply(qapp, mode)
    yield request.param, sizes
    monkeypatch.undo()
    theme.apply(qapp, "dark")


class Tour:
    """One window through states, pages and sizes; what is wrong is gathered, not told one by one."""

    def __init__(self, window: MainWindow, name: str, sizes: tuple[tuple[int, int], ...]) -> None:
        self.window, self.name, self.sizes = window, name, sizes
        self.found: dict[str, list[str]] = {}

    def look(self, state: str) -> None:
        for size in self.sizes:
            self.window.resize(*size)
            settle()
            at = f"{state} {size[0]} x {size[1]}"
            told = problems_of(self.window)
            if IS_WHOLE or size != SMALL:
                told += self.faint() + backwards(self.window)
            if (self.window.width(), self.window.height()) != size:
                told.append(f"the window needs {self.window.width()} x {self.window.height()}")
            if told:
                self.found[at] = told
            if PICTURES:
                folder = Path(PICTURES) / self.name
                folder.mkdir(parents=True, exist_ok=True)
                self.window.grab().save(str(folder / f"{state}-{size[0]}.png"))

    def faint(self) -> list[str]:
        """Texts that cannot be read; what is not painted otherwise is painted for this."""
        self.window.setUpdatesEnabled(True)
        try:
            return faint(self.window, list(visible(self.window)))
        finally:
            self.window.setUpdatesEnabled(bool(PICTURES))

    def through_others(self, state: str, known: tuple[str, ...]) -> None:
        """The tabs that the state has and its table does not name: all of them, or those of this day."""
        others = others_of(self.window, state, known)
        self.through_tabs(state, lambda _: None, others if IS_WHOLE else others[DAY % DAYS :: DAYS])

    def through_tabs(self, state: str, prepare: Callable[[MainWindow], None], tabs: tuple[str, ...]) -> None:
        prepare(self.window)
        for tab in tabs:
            self.window.tabs.show(tab)
            self.rest()
            self.look(f"{tab} {state}")

    def rest(self) -> None:
        """What is read for a run arrives later than its tab."""
        end = time.monotonic() + 20
        while any(self.window.studio.background.is_busy(work) for work in WORKS):
            assert time.monotonic() < end, "what is read of a run never comes"
            QApplication.processEvents()
            time.sleep(0.002)


def settle() -> None:
    """Layouts wait for the event loop, some for a turn of it more."""
    for _ in range(3):
        QApplication.sendPostedEvents(None, QEvent.Type.LayoutRequest)
        QApplication.processEvents()


def test_nothing_is_cut_off_covered_or_outside(
    qtbot: QtBot, look: tuple[str, tuple[tuple[int, int], ...]], make_window: MakeWindow
) -> None:
    name, sizes = look
    make_runs()
    make_queued()
    window = make_window(theme=LOOKS[name][0])
    assert window.devicePixelRatio() == (2.0 if IS_SCALED else 1.0)
    window.go_to("live")
    window.studio.history.refresh()
    qtbot.waitUntil(lambda: window.tabs.screens["live"].charts is not None, timeout=30_000)
    window.setUpdatesEnabled(bool(PICTURES))  # what is not kept need not be painted
    tour = Tour(window, name, sizes)
    for state, (prepare, tabs) in STATES.items():
        tour.through_tabs(state, prepare, tabs)
        tour.through_others(state, tabs)
    window.go_to("model")
    window.card.show()
    tour.through_tabs("card", lambda _: None, ("model", "settings", "chat"))
    window.announcer.clear()
    for state, (prepare, tabs) in RUN_STATES.items():
        prepare(window)
        tour.through_tabs(state, lambda _: None, tabs)
        tour.through_others(state, tabs)
    window.studio.shown.show("draft")
    for state, (tab, panel, prepare) in TRY_STATES.items():
        shutil.rmtree(paths.runs_dir(), ignore_errors=True)
        window.go_to(tab)
        prepare(window)
        window.tabs.screens[tab].show_tab(panel)
        tour.look(f"{tab} {state}")
    assert not tour.found, "\n".join(f"{at}: {line}" for at, told in tour.found.items() for line in told)


def test_the_first_window_fits_its_screen(qapp: QApplication) -> None:
    from PySide6.QtCore import QRect, QSize

    for width, height in ((1366, 728), (1280, 720), (1024, 680), (3840, 2160)):
        size = first_size(QSize(1380, 880), QRect(0, 27, width, height))
        assert size.width() <= width
        assert size.height() < height, "the frame needs room too"
    assert first_size(QSize(1380, 880), QRect(0, 0, 3840, 2160)) == QSize(1380, 880)


def test_longer_labels_are_longer(qapp: QApplication, look: tuple[str, object]) -> None:
    shown = QLabel("a label of some words")
    shown.ensurePolished()
    usual = LOOKS[look[0]][1]
    plain = QLabel("a label of some words")
    plain.setFont(QFont(theme.FAMILY))
    wide = shown.fontMetrics().horizontalAdvance(shown.text())
    font = QFont(shown.font())
    font.setLetterSpacing(QFont.SpacingType.PercentageSpacing, 100)
    plain.setFont(font)
    from PySide6.QtGui import QFontMetrics

    assert wide == pytest.approx(usual * QFontMetrics(font).horizontalAdvance(shown.text()), rel=0.1)


def test_the_checks_can_see_what_they_look_for(qtbot: QtBot) -> None:
    outer = QWidget()
    qtbot.addWidget(outer)
    narrow = QLabel("a text that has far too little room", outer)
    narrow.setFixedWidth(20)
    QLineEdit(outer).move(0, 60)
    outer.show()
    seen = list(visible(outer))
    assert clipped(seen)
    assert unnamed(seen)
    assert not faint(outer, seen)
    upper, lower = QLineEdit(outer), QLineEdit(outer)
    lower.move(0, 150)
    upper.move(0, 100)
    upper.show()
    lower.show()
    assert not backwards(outer)
    lower.move(0, 20)
    assert backwards(outer)
    narrow.setText("pale")
    narrow.setStyleSheet("color: #666666; background: #444444")
    assert faint(outer, seen)
