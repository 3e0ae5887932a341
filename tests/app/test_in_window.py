"""What the engine says for a terminal, as the window says it: every command of every message."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytestqt.qtbot import QtBot

from app.presenters.in_window import COMMAND, in_window
from app.widgets.kit import Notice

ROOT = Path(__file__).resolve().parents[2]
BUTTONS = (
    "app/tabs/live/screen.py",
    "app/frame/run_menu.py",
    "app/frame/beside.py",
    "app/dialogs.py",
    "app/presenters/run_header.py",
)


def text_of(node: ast.AST) -> str:
    """A message as it may read, each value as `NAME`; empty for what is no text."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) for part in parts)
        case ast.FormattedValue():
            return "NAME"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
        case ast.IfExp(body=body, orelse=orelse):
            return f"{text_of(body)} {text_of(orelse)}"
        case ast.BoolOp(values=values):
            return " ".join(text_of(value) for value in values)
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str())), args=[_]):
            return "NAME"  # " ".join(...)
    return ""


def told() -> Iterator[str]:
    """Every text with a command that the engine or the window gives to a call: errors, notices, findings."""
    files = [*(ROOT / "qlora_engine").rglob("*.py"), *(ROOT / "app").rglob("*.py")]
    for file in sorted(files):
        if "cli" in file.parts or "tables" in file.parts:
            continue
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                given = (*call.args, *(keyword.value for keyword in call.keywords))
                yield from (text for one in given if COMMAND.search(text := text_of(one)))


TOLD = sorted(set(told()))


def test_the_search_finds_messages() -> None:
    assert len(TOLD) > 20


@pytest.mark.parametrize("text", TOLD)
def test_no_command_keeps_its_ticks_or_has_no_place(text: str) -> None:
    shown = in_window(text)
    assert "`" not in shown
    for command in COMMAND.findall(text):
        if command[1].startswith(
            ("qlora resume", "qlora runs", "qlora queue list", "qlora data", "qlora models")
        ):
            assert command[1] not in shown, "the window has a button or a place for it"
        elif not command[1].startswith("hf auth"):
            assert f"\u201c{command[1]}\u201d in a terminal" in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("make it again from its checkpoint: `qlora resume a`", "make it again from its checkpoint: the button \u201cResume\u201d"),
        ("go on all the same: `qlora resume a --accept x`", "go on all the same: the button \u201cGo on all the same\u201d"),
        ("see the runs with `qlora runs`", "see the runs in the list at the left"),
        ("or run `qlora doctor` to see why", "or run \u201cqlora doctor\u201d in a terminal to see why"),
        ("the column `answer` is empty", "the column `answer` is empty"),
        ("needs 9.2 of 7.50 GiB, 5 % more", "needs 9.2 of 7.50\u00a0GiB, 5\u00a0% more"),
        ("layer v1.5 s of 12 Bits", "layer v1.5 s of 12 Bits"),
    ],
)  # fmt: skip
def test_a_sentence_for_the_window(text: str, shown: str) -> None:
    assert in_window(text) == shown


@pytest.mark.parametrize(
    "caption", ["Go on all the same", "Resume", "Duplicate as a draft", "Remove for good"]
)
def test_the_named_buttons_are_there(caption: str) -> None:
    assert any(f'"{caption}"' in (ROOT / file).read_text(encoding="utf-8") for file in BUTTONS)


def test_a_notice_says_it_so(qtbot: QtBot) -> None:
    notice = Notice()
    qtbot.addWidget(notice)
    notice.say("The adapter is damaged.", "Make it again: `qlora resume first-look`", "bad")
    assert notice._hint.text() == "Make it again: the button \u201cResume\u201d"
