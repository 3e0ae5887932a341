"""`qlora architectures` tries each type once, keeps what it found, and says in one sentence why a type does not train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlora_engine.architectures import survey, trial
from qlora_engine.cli.main import run


def test_types_are_tried_once_and_told_in_lines(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["architectures", "llama", "gemma2", "xlnet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["llama", "trains"]
    assert lines[1].startswith("gemma2")
    assert "sees those after it" in lines[2]
    assert lines[-1] == "2 of 3 train here"
    monkeypatch.setattr(trial, "attempt", lambda *_: pytest.fail("tried twice"))
    assert run(["architectures", "llama", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["trains"] == 1
    (found,) = document["types"]
    assert found["losses"][0] > found["losses"][-1]
    assert found["packing_leak"] < trial.SAME_LOGITS


def test_a_type_that_is_none_gets_a_suggestion(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["architectures", "llamma"]) == 2
    assert "did you mean 'llama'" in capsys.readouterr().err


def test_every_type_that_the_installed_transformers_knows_is_asked() -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    assert set(survey.model_types()) == known
