"""Prepared rows are looked at without the ML stack: the tokenizer is made again from what was kept of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from qlora_engine import config_io
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.control import Control
from qlora_engine.data import cache, desk, kept_tokenizer
from qlora_engine.data.kept_tokenizer import KeptTokenizer
from qlora_engine.data.templates import choose
from qlora_engine.models.tokenizer_file import load_tokenizer
from tests.engine.test_imports import ML_STACK, ROOT
from tests.support.tiny import CHATML, instruction_rows, make_tiny, tiny_tokenizer, write_rows

QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("list", {"kind": "all", "count": 5}), ("list", {"kind": "fewest_trained", "count": 5}), ("list", {"search": "a"}),
    ("row", {"number": 2}), ("batch", {"numbers": [1, 2]}), ("reasoning", {"chat_template": "auto"}),
]  # fmt: skip
ANSWER = """
import json, sys
from qlora_engine.control import Control
from qlora_engine.data.desk import Desk
config, questions, watched = json.loads(sys.stdin.read())
desk = Desk(Control())
answers = [desk.answer({"topic": t, "config": config, "ask": a}, lambda _: None) for t, a in questions]
print(json.dumps([sorted(set(watched) & set(sys.modules)), answers]))
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny("llama", tmp_path / "model")


def answered_alone(config: dict[str, Any]) -> Any:
    """(what of the ML stack was imported, the answers) of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", ANSWER], input=json.dumps([config, QUESTIONS, ML_STACK]), capture_output=True,
        text=True, cwd=ROOT, check=True, timeout=120,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_prepared_rows_are_answered_without_the_ml_stack_and_as_with_it(model: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", instruction_rows(12))
    chosen = with_value(with_value(TrainingConfig(), "model.name", str(model)), "data.path", str(file))
    config, first = config_io.to_dict(chosen), desk.Desk(Control())
    expected = [first.answer({"topic": t, "config": config, "ask": a}, lambda _: None) for t, a in QUESTIONS]
    assert isinstance(first._table.inspector.tokenizer, PreTrainedTokenizerFast)  # type: ignore[union-attr]
    kept = sorted(str(entry) for entry in cache.folder().glob("*/*"))
    imported, answers = answered_alone(config)
    assert imported == []
    assert answers == json.loads(json.dumps(expected))
    assert sorted(str(entry) for entry in cache.folder().glob("*/*")) == kept  # a run finds the same entries


def test_what_is_kept_says_what_the_wrapper_says(model: Path) -> None:
    wrapper = load_tokenizer(model)
    kept_tokenizer.load(model)
    kept = kept_tokenizer.load(model)
    assert isinstance(kept, KeptTokenizer)
    assert [kept.decode([n]) for n in range(len(wrapper))] == [
        wrapper.decode([n]) for n in range(len(wrapper))
    ]
    names = ["<|im_end|>", "a", "not in it"]
    assert kept.convert_tokens_to_ids(names) == wrapper.convert_tokens_to_ids(names)
    assert repr(choose(kept, "auto")) == repr(
        choose(wrapper, "auto")
    )  # generation_config.json names an end more
    for name in (*kept_tokenizer.FACTS, "is_fast", "name_or_path"):
        assert getattr(kept, name) == getattr(wrapper, name), name


def test_a_changed_file_or_a_damaged_entry_is_read_by_the_wrapper(model: Path) -> None:
    kept_tokenizer.load(model)
    (entry,) = (cache.folder() / kept_tokenizer.KIND).iterdir()
    (entry / kept_tokenizer.BACKEND_FILE).write_text("{", encoding="utf-8")
    assert isinstance(kept_tokenizer.load(model), PreTrainedTokenizerFast)
    assert isinstance(kept_tokenizer.load(model), KeptTokenizer)
    tiny_tokenizer(CHATML + "changed").save_pretrained(model)
    assert kept_tokenizer.load(model).chat_template == CHATML + "changed"
    assert kept_tokenizer.load(model).chat_template == CHATML + "changed"


def test_a_tokenizer_that_decodes_otherwise_or_brings_code_is_never_kept(tmp_path: Path, model: Path) -> None:
    backend = Tokenizer(WordPiece({"[UNK]": 0, "a": 1, "##.": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(cleanup=False)
    cleaning = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", clean_up_tokenization_spaces=True
    )
    cleaning.save_pretrained(tmp_path / "words")
    for _ in range(2):
        assert isinstance(kept_tokenizer.load(tmp_path / "words"), PreTrainedTokenizerFast)
        assert isinstance(kept_tokenizer.load(model, trust_remote_code=True), PreTrainedTokenizerFast)
