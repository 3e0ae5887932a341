"""Held-out predictions: the run's own rows and loss, the first wrong token, and what is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_engine.control import Control
from qlora_engine.data.batches import collate
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.errors import Cancelled, EngineError
from qlora_engine.evaluate import generate, held_out, prediction_file, predictions
from qlora_engine.evaluate.predictions import asked_of, predictions_job, score_row
from qlora_engine.events import Event, Progressed, RunFinished
from qlora_engine.jobs import PredictionsJob
from qlora_engine.runs.record import RunFolder
from qlora_engine.training import loss as losses
from tests.engine.evaluate.test_chat import loaded
from tests.support import tiny_runs


@pytest.fixture(scope="module")
def run(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with 6 held-out rows that it has half learned."""
    folder = tmp_path_factory.mktemp("predicted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_HOME", str(folder / "home"))
        config = tiny_runs.tiny_config(
            model_dir, tiny_runs.data_file(folder), folder / "runs", lora__rank=16, training__max_steps=30,
            training__eval_every_steps=30, output__name="half",
        )  # fmt: skip
        return tiny_runs.finished_run(config)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run where a test may write."""
    shutil.copytree(run, tmp_path / "half")
    return tmp_path / "half"


def scored(run: Path, rows: int = 2, control: Control | None = None) -> list[Event]:
    return list(predictions_job(PredictionsJob(str(run), rows, "cpu"), control or Control()))


def test_the_rows_and_their_loss_are_those_the_training_measured(copy: Path) -> None:
    events = scored(copy)
    assert isinstance(events[-1], RunFinished)
    result = events[-1].result
    record = RunFolder(copy).record()
    assert result["scored_rows"] == record["plan"]["held_out_rows"] == 6
    assert result["loss"] == pytest.approx(record["loss_after"], rel=1e-5)
    assert [(e.done, e.total) for e in events if isinstance(e, Progressed) and e.phase == "generating"][
        -1
    ] == (4, 4)
    assert prediction_file.read(RunFolder(copy)) == result
    stored = [json.loads(line) for line in (copy / prediction_file.ROWS_FILE).read_text().splitlines()]
    assert len(stored) == 6
    all_losses = [row["loss"] for row in stored]
    assert all_losses == sorted(all_losses, reverse=True)
    assert [r["loss"] for r in result["worst"]] == all_losses[:2]
    assert [r["loss"] for r in result["best"]] == all_losses[:-3:-1]


def test_the_same_rows_are_answered_by_every_run_that_held_them_out(copy: Path) -> None:
    end = list(predictions_job(PredictionsJob(str(copy), 1, "cpu", same=4), Control()))[-1]
    result = end.result  # type: ignore[attr-defined]
    stored = [json.loads(line) for line in (copy / prediction_file.ROWS_FILE).read_text().splitlines()]
    assert [row["row"] for row in result["same"]] == sorted(row["row"] for row in stored)[:4]
    assert all(row["expected"] and "got" in row for row in result["same"])


def test_each_row_says_what_was_asked_expected_and_got(copy: Path) -> None:
    result = scored(copy, rows=6)[-1].result  # type: ignore[attr-defined]
    asked = {row["instruction"]: row["output"] for row in tiny_runs.varied_rows(30)}
    wrong = [row for row in result["worst"] if row["wrong_at"] is not None]
    assert wrong
    for row in result["worst"]:
        assert row["expected"] == asked[row["question"]]
        assert row["question"] in row["prompt"]
        assert (row["got"] == row["expected"]) == (row["wrong_at"] is None)
    assert result["faultless_rows"] == 6 - len(wrong)


def test_the_first_wrong_token_is_where_the_greedy_answer_leaves_the_expected_one(copy: Path) -> None:
    chat = loaded(copy)
    rows = held_out_rows(copy, chat)
    for row in rows:
        with chat.speaking("tuned") as model:
            score = score_row(model, row)
            asked = asked_of(row)
            settings = generate.GenerationSettings(max_new_tokens=len(asked.expected))
            with torch.no_grad():
                out = model.generate(
                    input_ids=torch.tensor([asked.prompt]), attention_mask=torch.ones(1, len(asked.prompt), dtype=torch.long),
                    max_new_tokens=settings.max_new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
                )[0, len(asked.prompt) :].tolist()  # fmt: skip
        differing = [i for i, (a, b) in enumerate(zip(out, asked.expected, strict=True)) if a != b]
        assert score.wrong_at == (differing[0] if differing else None)
        if differing:
            assert score.likeliest == out[differing[0]]


def held_out_rows(run: Path, chat: Any) -> list[TokenRow]:
    folder = RunFolder(run)
    base = Path(folder.record()["model"]["path"])
    return held_out.rows_of_run(folder.job(), folder.record(), base, chat.tokenizer, Control())


@pytest.mark.parametrize("kind", ["chunked", "full"])
def test_a_rows_loss_is_the_training_loss(run: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "CHUNK_TOKENS", 3)
    chat = loaded(run)
    row = max(held_out_rows(run, chat), key=lambda r: r.trained_count)
    with chat.speaking("tuned") as model:
        score = score_row(model, row, kind=kind)
        ((expected, tokens),) = losses.row_losses(model, collate([row], 0))
    assert score.tokens == tokens > 3
    assert score.loss == pytest.approx(expected / tokens, rel=1e-5)


def test_the_question_is_what_stands_before_the_last_answer() -> None:
    def row(trained: str) -> TokenRow:
        return TokenRow(list(range(len(trained))), [c == "x" for c in trained], 1)

    two_turns = asked_of(row("..xx...xxx.."))
    assert (list(two_turns.prompt), list(two_turns.expected)) == ([0, 1, 2, 3, 4, 5, 6], [7, 8, 9])
    text = asked_of(row("xxxxxxxx"))
    assert (list(text.prompt), list(text.expected)) == ([0, 1, 2, 3], [4, 5, 6, 7])
    long = asked_of(row("x" * 100))
    assert len(long.prompt) == held_out.TEXT_PROMPT_TOKENS


def test_changed_data_is_refused_with_both_hashes_before_anything_is_loaded(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunFolder(copy).record()
    RunFolder(copy).update(data={**record["data"], "sha256": "0" * 64})
    monkeypatch.setattr(predictions, "load_chat_model", None)
    with pytest.raises(EngineError) as refused:
        scored(copy)
    assert refused.value.code == "held_out.other_data"
    assert "0000000000000000" in refused.value.message
    assert record["data"]["sha256"][:16] in refused.value.message


def test_stopping_keeps_nothing_and_ends_at_once(copy: Path) -> None:
    control = Control()
    events = predictions_job(PredictionsJob(str(copy), 2, "cpu"), control)
    for event in events:
        if isinstance(event, Progressed) and event.phase == "evaluating":
            control.request_stop()
            break
    with pytest.raises(Cancelled):
        list(events)
    assert not (copy / prediction_file.FILE).exists()


def test_kept_predictions_belong_to_the_adapter_they_were_made_with(copy: Path) -> None:
    assert prediction_file.read(RunFolder(copy)) is None
    scored(copy)
    kept = prediction_file.read(RunFolder(copy))
    assert kept is not None
    assert kept["scored_rows"] == 6
    with (copy / "adapter" / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    assert prediction_file.read(RunFolder(copy)) is None
