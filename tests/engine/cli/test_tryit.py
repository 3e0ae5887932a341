"""`qlora prompts` and `qlora predictions`, from the command line to the document."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.cli import generation
from qlora_engine.cli.commands import predictions
from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.evaluate.drawing import GenerationSettings
from qlora_engine.runs.record import RunFolder
from tests.support import tiny_runs


def test_sets_are_saved_listed_shown_and_deleted(qlora: Any, tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text("one\ntwo\n")
    assert qlora("prompts", "save", "mine", file).out == "Saved mine: 2 prompts\n"
    assert qlora("prompts", "save", "other", "-p", "three", "--json").document["prompts"] == ["three"]
    listed = qlora("prompts", "list", "--json").document["sets"]
    assert [(s["name"], len(s["prompts"])) for s in listed] == [("starter", 3), ("mine", 2), ("other", 1)]
    assert "mine" in qlora("prompts", "list").out
    assert qlora("prompts", "show", "mine").out == "one\ntwo\n"
    assert qlora("prompts", "delete", "mine", "--json").document == {"deleted": "mine"}
    assert qlora("prompts", "show", "mine").code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("save", "mine"), "give a FILE, or --prompt"),
        (("save", "mine", "nowhere.txt"), "cannot be read"),
        (("delete", "starter"), "comes with the program"),
        (("run", "startr", "x"), "there is no prompt set 'startr'; hint: did you mean 'starter'?"),
        (("run", "starter", "nowhere"), "there is no run 'nowhere'"),
        (("run", "starter"), "Missing argument"),
    ],
)
def test_wrong_input_is_one_sentence(qlora: Any, arguments: tuple[str, ...], words: str) -> None:
    result = qlora("prompts", *arguments)
    assert result.code == 2
    assert words in result.error


def test_a_run_is_asked_and_scored_from_the_terminal(
    qlora: Any, tiny_model: Path, home: Path, tmp_path: Path
) -> None:
    config = tiny_runs.tiny_config(
        tiny_model, tiny_runs.data_file(tmp_path), home / "runs", training__max_steps=2, output__name="one"
    )
    tiny_runs.finished_run(config)
    ask = ("prompts", "run", "starter", "one", "--max-tokens", 4)
    first = qlora(*ask, "--json").document
    assert (first["set"], first["asked"], first["kept"]) == ("starter", 6, 0)
    again = qlora(*ask)
    assert "0 answers given now, 6 kept from before" in again.err
    assert again.out.count("Asked: ") == 3
    assert qlora(*ask, "--no-base", "--again", "--json").document["asked"] == 3

    scored = qlora("predictions", "one", "--rows", 2, "--json")
    assert scored.code == 0, scored.err
    found = scored.document
    assert found["loss"] == pytest.approx(RunFolder(home / "runs" / "one").record()["loss_after"], rel=1e-5)
    assert (len(found["worst"]), len(found["best"])) == (2, 2)
    told = qlora("predictions", "one", "--rows", 1)  # kept: nothing is loaded for it
    assert "6 held-out rows, mean loss" in told.out
    assert told.out.count("expected ") >= 2
    assert "Scoring" not in told.err


def test_a_run_without_an_adapter_cannot_be_scored(qlora: Any) -> None:
    RunFolder.create(with_value(TrainingConfig(), "output.name", "bare"))
    result = qlora("predictions", "bare")
    assert result.code == 2
    assert "neither an adapter nor a checkpoint" in result.error


def test_drawing_options_become_the_engines_settings() -> None:
    chosen = {
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 3,
        "repetition_penalty": 1.1,
        "seed": 4,
    }
    greedy = {"max_new_tokens": 9, "do_sample": False, "repetition_penalty": 1.1, "seed": 4}
    assert generation.settings(chosen) == greedy
    drawn = {**greedy, "do_sample": True, "temperature": 0.8, "top_p": 0.5, "top_k": 3}
    assert generation.settings({**chosen, "temperature": 0.8}) == drawn
    assert set(drawn) == {field.name for field in fields(GenerationSettings)}


def test_the_summary_says_where_an_answer_goes_wrong() -> None:
    row = {"wrong_at": 4, "answer_tokens": 14, "wrong_token": " eight", "likeliest_token": " seven"}
    assert predictions._wrong(row) == "first wrong token 5 of 14: expected ' eight', likeliest ' seven'"
    assert predictions._wrong({**row, "wrong_at": None}) == "no wrong token"
