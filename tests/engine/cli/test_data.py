"""`qlora data`: what it found, what it left out, and the mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.cli.commands.data import rendered


def test_the_report_in_words(qlora: Any, tiny_model: Path, good_rows: Path) -> None:
    result = qlora("data", good_rows, "--model", tiny_model, "--show-mask", 2)
    assert result.code == 0, result.err
    assert "alpaca: it has the columns instruction and output" in result.out
    assert "24 read" in result.out
    assert result.out.count("\nrow ") == 2
    assert "what colour is" in result.out
    assert any(f"[{colour}" in result.out for colour in ("red", "green", "blue"))


def test_the_report_as_a_document(qlora: Any, tiny_model: Path, good_rows: Path) -> None:
    document = qlora("data", good_rows, "--model", tiny_model, "--show-mask", 1, "--json").document
    assert document["report"]["format"] == "alpaca"
    assert 0 < document["report"]["trained_tokens"] < document["report"]["train_tokens"]
    (row,) = document["rows"]
    trained = "".join(token["text"] for token in row["tokens"] if token["state"] == "trained")
    assert trained.startswith(("red", "green", "blue"))
    assert trained.endswith("<|im_end|>")


def test_columns_can_be_mapped(qlora: Any, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("question,reply\n" + "".join(f"q{n},a{n}\n" for n in range(6)), encoding="utf-8")
    arguments = ("--format", "alpaca", "--column", "instruction=question", "--column", "output=reply")
    result = qlora("data", file, "--model", tiny_model, *arguments, "--json")
    assert result.code == 0, result.err
    assert result.document["report"]["columns"]["instruction"] == "question"


def test_an_empty_mapping_is_refused(qlora: Any, good_rows: Path) -> None:
    result = qlora("data", good_rows, "--column", "instruction")
    assert result.code == 2
    assert result.error.endswith("hint: write it as --column instruction=question")


@pytest.mark.parametrize(
    ("states", "text"),
    [(("masked", "trained", "trained"), "a[bc]"), (("trained", "masked", "cut"), "[a]b~c~")],
)
def test_the_mask_reads_without_colour(states: tuple[str, ...], text: str) -> None:
    tokens = [{"text": letter, "state": state} for letter, state in zip("abc", states, strict=True)]
    assert rendered(tokens) == text


def test_openassistant_turns_may_share_a_line(qlora: Any, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "guanaco.jsonl"
    row = {
        "text": "### Human: Who was it?### Assistant: Ada. #### Human: is no turn### Human: When?### Assistant: 1843."
    }
    file.write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    document = qlora("data", file, "--model", tiny_model, "--show-mask", 1, "--json").document
    assert document["report"]["format"] == "oasst"
    states = {}
    for token in document["rows"][0]["tokens"]:
        states[token["state"]] = states.get(token["state"], "") + token["text"]
    assert "Ada. #### Human: is no turn" in states["trained"]
    assert "1843." in states["trained"]
    assert "When?" in states["masked"]
