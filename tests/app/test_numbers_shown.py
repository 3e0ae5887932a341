"""Numbers are written in one place, so that the language chosen in the settings holds for all: no other module formats one, and no
screen shows one in the English form while another is chosen."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import shutil
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QAbstractListModel, Qt
from PySide6.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QApplication,
    QComboBox,
    QLabel,
    QLineEdit,
    QWidget,
)
from pytestqt.qtbot import QtBot

from app.presenters import numerals
from app.presenters.numerals import Style
from app.presenters.words import FIGURES
from app.window import MainWindow
from qlora_engine import paths
from qlora_engine.config import all_knobs
from qlora_engine.memory.optimizer_state import StateBytes
from qlora_engine.monitor import words as memory_words
from qlora_engine.quantization import words
from qlora_engine.quantization.variants import Variant
from tests.app.conftest import MakeWindow
from tests.app.geometry import visible
from tests.app.quality_of_a_model import quality_report
from tests.app.window_states import RUN_STATES, STATES, TRY_STATES, make_queued, make_runs
from tests.engine.monitor.samples import cpu_sample, gpu_sample

ROOT = Path(__file__).resolve().parents[2]
MIB, GIB = 1024**2, 1024**3
PLACE = "app/presenters/numerals.py"
NOT_SHOWN = {
    ("app/widgets/answers.py", "f'{width:.4f}'"): "a width in HTML",
    (
        "app/services/number_style.py",
        "locale.toString(123456789)",
    ): "asks Qt's tables how large the groups are",
    (
        "app/services/number_style.py",
        "locale.toString(10 ** (n - 1))",
    ): "asks Qt's tables which numbers are grouped",
}
"""What formats a number that no person sees, or is asked how a language does it, each with its reason."""
NUMBER_SPEC = r"(.?[<>=^])?[-+ ]?#?0?\d*[,_]?(\.\d+)?[bdeEfFgGn%]?"
CALLS = ("strftime", "format", "toString", "isoformat", "ctime", "asctime")


def formatting(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of everything that makes text of a number by its own rules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            if not re.fullmatch(r"f'(.?[<>^])?\d*s?'", ast.unparse(node.format_spec)):
                yield node.lineno, ast.unparse(ast.JoinedStr([node]))
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if (name in CALLS and not _fills_names(node)) or (name == "round" and len(node.args) == 2):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and _is_text(node.left):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _has_spec(node.value):
            yield node.lineno, repr(node.value)


def _fills_names(node: ast.Call) -> bool:
    """`text.format(words)`: what could format a number is in the text, which is looked at by itself."""
    return isinstance(node.func, ast.Attribute) and node.func.attr == "format"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _has_spec(text: str) -> bool:
    """A text for `str.format` that says how a number is written."""
    try:
        return any(
            spec and re.fullmatch(NUMBER_SPEC, spec) for _, _, spec, _ in string.Formatter().parse(text)
        )
    except ValueError:
        return False


def test_no_other_module_formats_a_number() -> None:
    found, used = [], set()
    for file in sorted((ROOT / "app").rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        for line, text in formatting(ast.parse(file.read_text(encoding="utf-8"))):
            if (name, text) in NOT_SHOWN:
                used.add((name, text))
            elif name != PLACE:
                found.append(f"{name}:{line} {text}")
    assert not found, "written by `app.presenters.numerals` or `words` instead:\n" + "\n".join(found)
    assert used == set(NOT_SHOWN), "what is not there any more needs no reason"


@pytest.mark.parametrize(
    "text",
    ["f'{x:.2f}'", "f'{n:,}'", "f'{n:g}'", "f'{n:02d}'", "f'{x:.{places}f}'", "'%d rows' % n", "'{:,.0f}/s'.format(x)", "format(x, '.2f')",
     "time.strftime('%H:%M')", "moment.isoformat()", "QLocale().toString(x)", "str(round(x, 2))"],
)  # fmt: skip
def test_the_search_sees_every_way_to_format(text: str) -> None:
    assert list(formatting(ast.parse(text)))


@pytest.mark.parametrize(
    "text", ["f'{x}'", "f'{name:>12}'", "round(x)", "'{} rows'.format(n)", "n % 2", "'a: b'"]
)
def test_the_search_leaves_the_rest_alone(text: str) -> None:
    assert not list(formatting(ast.parse(text)))


UNIT_BEHIND = re.compile(r" (GiB|MiB|KiB|%|dB|W|h|s|min|tokens/s|MiB/s|\u00b0C)(?![\w/])")


def test_no_module_writes_a_unit_behind_a_space() -> None:
    found = []
    for file in sorted((ROOT / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found += [
                    f"{file.relative_to(ROOT)}:{node.lineno}{text.value[:12]!r}"
                    for value, text in itertools.pairwise(node.values)
                    if isinstance(value, ast.FormattedValue)
                    and isinstance(text, ast.Constant)
                    and UNIT_BEHIND.match(str(text.value))
                ]
    assert not found, "written by `numerals.measured` instead:\n" + "\n".join(found)


# ------------------------------------------------------------ what the screens show

ODD = Style(decimal="\u066b", group="\u066c", date="%Y\u2044%m\u2044%d", clock="%H\u2236%M")
"""Marks that no other text has."""
ENGLISH_NUMBER = re.compile(r"(?<![\w./-])\d+[.,]\d+(?![\w/-]|\.\d)")
PARTED = re.compile(r"\d (GiB|MiB|KiB|B|K|M|%|s|min|h|d|dB|W|\u00b0C|tokens/s|MiB/s|nats/token)(?![\w/])")
"""A figure that the end of a line may part from its unit."""
UNGROUPED = re.compile(r"(?<![\w./#\u066b\u066c\u2044\u2236-])\d{4,}(?![\w/\u2044-])")


@functools.cache
def of_the_engine() -> frozenset[str]:
    """Its sentences, which keep the English form: of options, and of a quality report."""
    told = words.sentences(quality_report(), Variant("nf4", 64, True))
    return frozenset((*(knob.help.replace("`", "") for knob in all_knobs().values()), *told))


@pytest.fixture
def odd_numbers() -> Iterator[None]:
    numerals.use(ODD)
    yield
    numerals.use(numerals.ENGLISH)


def texts_of(window: QWidget) -> Iterator[str]:
    for widget in visible(window):
        yield widget.toolTip()
        if isinstance(widget, QLabel | QAbstractButton | QLineEdit):
            yield widget.text()
            yield widget.accessibleName()
        if isinstance(widget, QComboBox):
            yield widget.currentText()
        if isinstance(widget, QAbstractItemView) and widget.model() is not None:
            model = widget.model()
            for row in range(model.rowCount()):
                for column in range(1 if isinstance(model, QAbstractListModel) else model.columnCount()):
                    yield str(model.index(row, column).data(Qt.ItemDataRole.DisplayRole) or "")


def in_english(window: QWidget) -> set[str]:
    return {
        line
        for text in texts_of(window)
        for line in text.splitlines()
        if any(kind.search(line) for kind in (ENGLISH_NUMBER, UNGROUPED, PARTED))
        and line not in of_the_engine()
    }


def test_no_screen_shows_a_number_in_another_form(
    qtbot: QtBot, make_window: MakeWindow, odd_numbers: None
) -> None:
    make_runs()
    make_queued()
    window = make_window()
    window.go_to("live")
    window.studio.history.refresh()
    qtbot.waitUntil(lambda: window.tabs.screens["live"].charts is not None, timeout=30_000)
    qtbot.waitUntil(lambda: window.studio.workspace.memory.own is not None, timeout=30_000)
    window.setUpdatesEnabled(False)
    found: dict[str, set[str]] = {}

    def look(state: str, tabs: tuple[str, ...]) -> None:
        for tab in tabs:
            window.tabs.show(tab)
            QApplication.processEvents()
            for text in in_english(window):
                found.setdefault(text, set()).add(f"{tab} {state}")

    _through_states(qtbot, window, look)
    assert not found, "\n".join(f"{min(where)}: {text}" for text, where in sorted(found.items()))


@pytest.mark.usefixtures("odd_numbers")
def test_what_the_engine_says_of_memory_is_written_as_the_window_writes() -> None:
    """Of a GPU with pages on the CPU, of one that holds back and spills, of a computer without one; before a run too."""
    paged = gpu_sample(paged={**gpu_sample()["paged"], "on_cpu_bytes": 3 * GIB // 2})
    unknown = gpu_sample(
        paged={**gpu_sample()["paged"], "on_cpu_bytes": None}, torch={"spilled_bytes": 5 * GIB // 2}
    )
    samples = (paged, unknown, cpu_sample())
    said = [memory_words.memory_line(one, 9 * GIB, 31 * GIB // 3, 0.125, FIGURES) for one in samples]
    asked: dict[str, Any] = {"rank": 16, "device": "cuda", "figures": FIGURES}
    states = (StateBytes(3 * MIB // 2, 20 * MIB, 0), StateBytes(5 * MIB // 2, 0, 0))
    for optimizer, state, device in itertools.product(
        ("paged_adamw_8bit", "adamw_8bit"), states, ("cpu", "cuda")
    ):
        for short in (None, -GIB, 11 * MIB, GIB):
            room = {} if short is None else {"peak_bytes": 8 * GIB + short, "usable_bytes": 8 * GIB}
            said.append(
                memory_words.paging_forecast(
                    **{**asked, "optimizer": optimizer, "state": state, "device": device, **room}
                )
            )
    assert [
        text for text in said if any(kind.search(text) for kind in (ENGLISH_NUMBER, UNGROUPED, PARTED))
    ] == []
    assert any(ODD.decimal in text for text in said)


def _through_states(qtbot: QtBot, window: MainWindow, look) -> None:
    for state, (prepare, tabs) in STATES.items():
        prepare(window)
        look(state, tabs)
    for state, (prepare, tabs) in RUN_STATES.items():
        prepare(window)
        for work in ("shown", "compare", "picture", "setup", "files", "ending"):
            qtbot.waitUntil(lambda w=work: not window.studio.background.is_busy(w), timeout=10_000)
        look(state, tabs)
    window.studio.shown.show("draft")
    for state, (tab, panel, prepare) in TRY_STATES.items():
        shutil.rmtree(paths.runs_dir(), ignore_errors=True)
        window.go_to(tab)
        prepare(window)
        window.tabs.screens[tab].show_tab(panel)
        look(state, (tab,))
