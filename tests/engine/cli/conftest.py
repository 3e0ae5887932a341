"""Runs `qlora` command lines in this process, with the program's own data in a temporary folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.cli.main import run


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as one JSON document; fails when anything else was printed there."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The last line of stderr, which is where an error stands."""
        return self.err.strip().splitlines()[-1]


Qlora = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("QLORA_HOME", str(folder))
    monkeypatch.setenv("QLORA_ENGINE", "inline")
    return folder


@pytest.fixture
def qlora(home: Path, capfd: pytest.CaptureFixture[str]) -> Qlora:
    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama and its tokenizer."""
    from tests.support import tiny  # imports torch

    return tiny.make_tiny("llama", tmp_path_factory.mktemp("models") / "tiny", tie_word_embeddings=True)


@pytest.fixture
def good_rows(tmp_path: Path) -> Path:
    """Alpaca rows that a few steps can learn from."""
    colours = ("red", "green", "blue")
    rows = [{"instruction": f"what colour is {n}?", "input": "", "output": colours[n % 3]} for n in range(24)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file
