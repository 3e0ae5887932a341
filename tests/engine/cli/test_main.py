"""The frame around every command: help, errors, exit codes, start-up."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from qlora_engine import __version__
from qlora_engine.cli import failures
from qlora_engine.cli.main import COMMANDS, cli
from tests.support.pace import limit

ERROR_FORM = re.compile(r"^error: .+[^.]; hint: .+[^.]$")


def test_help_lists_every_command(qlora: Any) -> None:
    result = qlora("--help")
    assert result.code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name}  +\w", result.out, re.MULTILINE), name


def parts_of(name: str) -> list[tuple[str, ...]]:
    """A command, or the commands of a group."""
    command = cli.get_command(click.Context(cli), name)
    return [(name, part) for part in command.commands] if isinstance(command, click.Group) else [(name,)]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_and_offers_json(name: str, qlora: Any) -> None:
    for part in parts_of(name):
        result = qlora(*part, "--help")
        assert result.code == 0
        assert "--json" in result.out


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_are_importable_by_their_table(name: str) -> None:
    module, attribute = COMMANDS[name].split(":")
    command = getattr(importlib.import_module(f"qlora_engine.cli.commands.{module}"), attribute)
    assert isinstance(command, click.Command)
    assert command.help


def test_version(qlora: Any) -> None:
    assert __version__ in qlora("--version").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chek"], "did you mean 'check'"),
        (["check"], "Missing argument"),
        (["check", "--nonsense", "x"], "No such option"),
        (["runs", "too", "many"], "unexpected extra argument"),
        (["--engine", "steam", "runs"], "'steam' is not one of"),
    ],
)
def test_usage_errors_are_one_sentence_with_a_next_step(arguments: list[str], words: str, qlora: Any) -> None:
    result = qlora(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert words in result.err
    assert ERROR_FORM.match(result.err.rstrip("\n")), result.err


def test_a_bug_is_one_sentence_and_its_traceback_a_file(
    qlora: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError("made for this test")

    monkeypatch.setattr("qlora_engine.runs.index.RunIndex.entries", explode)
    result = qlora("runs")
    assert result.code == 1
    assert "Traceback" not in result.err
    assert result.err.startswith("error: unexpected ZeroDivisionError: made for this test; hint: ")
    (log,) = (home / "logs").iterdir()
    assert str(log) in result.err
    assert "Traceback" in log.read_text(encoding="utf-8")


def test_a_bug_is_told_when_the_home_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("QLORA_HOME", str(blocked))
    log = failures.write_log("details")
    assert log.read_text(encoding="utf-8") == "details"
    log.unlink()


def test_interrupt_has_the_shell_s_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert failures.report(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_help_is_there_at_once_and_without_the_ml_stack(tmp_path: Path) -> None:
    script = (
        "import sys, time; began = time.process_time(); from qlora_engine.cli.main import run;"
        "run(['--help']); spent = time.process_time() - began;"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'datasets', 'huggingface_hub'} & set(sys.modules);"
        "print(f'{spent} {sorted(heavy)}', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    spent, heavy = done.stderr.split(" ", 1)
    assert heavy.strip() == "[]"
    assert float(spent) < limit(0.35, time.process_time)


def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path: Path) -> None:
    command = f'"{sys.executable}" -m qlora_engine.cli.main --help | true'
    environment = {**os.environ, "QLORA_HOME": str(tmp_path)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in done.stderr


def test_the_command_runs_as_a_program(tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "qlora_engine.cli.main", "runs", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "QLORA_HOME": str(tmp_path)},
        check=True,
    )
    assert json.loads(done.stdout) == {"runs": []}
    assert time.monotonic() - began < 30


def test_every_command_has_a_short_help_of_one_sentence() -> None:
    with click.Context(cli) as ctx:
        for name in COMMANDS:
            command = cli.get_command(ctx, name)
            assert command is not None
            assert command.get_short_help_str(limit=200).endswith((".", "tokens"))
