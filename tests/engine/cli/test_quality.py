"""`qlora quality`: the table, the sentence, the document, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its rows are whole blocks of 64."""
    from tests.support import tiny  # imports torch

    return tiny.make_tiny("llama", tmp_path_factory.mktemp("models") / "wide", intermediate_size=128)


QUICK = ("--blocks", "64", "--rows", "3", "--set", "model.device=cpu")


def test_the_table_and_the_sentences(qlora: Any, wide_model: Path, good_rows: Path) -> None:
    result = qlora("quality", wide_model, "--data", good_rows, *QUICK, "--set", "data.held_out_fraction=0.3")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    head = next(line for line in lines if line.startswith("variant"))
    for column in (
        "bits/param",
        "rel. error",
        "SNR dB",
        "held-out loss",
        "+loss vs 16-bit",
        "same first choice",
    ):
        assert column in head
    variants = [
        line for line in lines if re.match(r"(NF4|FP4|linear int4)( \+ double quantization)?  ", line)
    ]
    assert len(variants) == 6
    worst = lines[next(i for i, line in enumerate(lines) if line.startswith("worst layers")) + 2 :][:5]
    assert all(line.startswith("model.layers.") for line in worst)
    assert "NF4 with double quantization costs" in result.out
    assert "3 rows are few" in result.out


def test_the_document(qlora: Any, wide_model: Path, good_rows: Path) -> None:
    arguments = ("quality", wide_model, "--data", good_rows, *QUICK, "--json")
    document = qlora(*arguments).document
    assert set(document["weights"]["totals"]) == set(document["held_out"]["scores"])
    assert document["held_out"]["scores"]["nf4-64-dq"]["perplexity"] > 1
    assert document["sentences"]
    assert qlora(*arguments).document["unix_time"] == document["unix_time"]
    assert qlora(*arguments, "--again").document["unix_time"] > document["unix_time"]


def test_the_weights_alone_need_no_data(qlora: Any, wide_model: Path) -> None:
    result = qlora(
        "quality", wide_model, "--no-loss", "--layers", "1", "--all", "--set", "quantization.quant_type=fp4"
    )
    assert result.code == 0, result.err
    assert "linear int4 + double quantization, blocks of 256" in result.out
    assert "worst layers, stored as FP4 with double quantization" in result.out
    assert "1 of 2 layers were measured" in result.out
    assert "n/a" in result.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--blocks", "48"), "a block of 48 weights"),
        (("--blocks", "x"), "--blocks x is not a list of numbers"),
        (("--data", "/nowhere.jsonl"), "/nowhere.jsonl"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], words: str, qlora: Any, wide_model: Path) -> None:
    result = qlora("quality", wide_model, "--layers", "1", *arguments)
    assert result.code == 2
    assert result.error.startswith("error: ")
    assert words in result.error
    assert "hint: " in result.error
