"""After training it is tried, not supposed, whether the model ends its answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import config_io
from qlora_engine.cli.story import sentence
from qlora_engine.control import Control
from qlora_engine.data import tokens
from qlora_engine.data.tokenize import TokenRow
from qlora_engine.errors import EngineError
from qlora_engine.evaluate import generate
from qlora_engine.evaluate.held_out import short_questions
from qlora_engine.events import EndingsCounted, Event, Noticed, PhaseChanged, RunFinished
from qlora_engine.export.card import model_card
from qlora_engine.export.source import open_source
from qlora_engine.jobs import TrainJob
from qlora_engine.runs import endings as kept
from qlora_engine.runs import stored
from qlora_engine.runs.record import RunFolder
from qlora_engine.runs.summary import summary_of
from qlora_engine.training import endings, recipe
from tests.engine.training.conftest import MakeConfig
from tests.support import tiny_runs
from tests.support.tiny import write_rows

LEARNING = {
    "training__max_steps": 40, "training__eval_every_steps": 40, "training__learning_rate": 0.02, "lora__rank": 16,
    "training__end_rows": 3, "training__end_tokens": 16,
}  # fmt: skip


@pytest.fixture
def same_answer(tmp_path: Path) -> dict[str, str]:
    """Rows to learn by heart, and held-out ones of the kind."""
    rows = [{"instruction": f"Say {n}", "input": "", "output": "red fox"} for n in range(12)]
    held = [{"instruction": f"Say {n}", "input": "", "output": "red fox"} for n in range(20, 24)]
    return {
        "data__path": str(write_rows(tmp_path / "rows.jsonl", rows)),
        "data__held_out_path": str(write_rows(tmp_path / "held.jsonl", held)),
    }


def one(events: list[Event]) -> EndingsCounted:
    (found,) = tiny_runs.of(events, EndingsCounted)
    return found


@pytest.fixture
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "SHORTEST_SECONDS", 60.0)


@pytest.mark.usefixtures("no_hurry")
def test_a_model_that_learned_the_end_ends_every_answer(
    make_config: MakeConfig, same_answer: dict[str, str]
) -> None:
    events = tiny_runs.train(make_config(**same_answer, **LEARNING))
    found = one(events)
    assert (found.asked, found.ended, found.taught, found.limit) == (3, 3, 3, 16)
    folder = RunFolder(tiny_runs.run_dir(events))
    assert folder.record()["endings"] == dataclasses.asdict(found)
    assert stored.end_of_adapter(folder.path)["endings"] == dataclasses.asdict(found)
    assert stored.adapter_problem(folder.path) == ""
    assert (summary_of(folder).answers_asked, summary_of(folder).answers_ended) == (3, 3)
    assert found in list(folder.metrics())
    card = model_card(open_source(str(folder.path)), "adapter", {})
    assert "| held-out answers that ended by themselves | 3 of 3 (limit of 16 tokens) |" in card
    assert sentence(found) == "3 of 3 answers to held-out questions ended by themselves"


@pytest.mark.usefixtures("no_hurry")
def test_a_model_that_was_never_taught_an_end_goes_on_and_the_reason_is_said(
    make_config: MakeConfig, same_answer: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program trains an end even where a template writes none, so its mask is taken away here."""

    def without_end(row: TokenRow, seq_len: int) -> TokenRow:
        last = max(place for place, is_trained in enumerate(row.trained) if is_trained)
        trained = [is_trained and place < last for place, is_trained in enumerate(row.trained)]
        return dataclasses.replace(row, trained=trained)

    monkeypatch.setattr(tokens, "cut", without_end)
    found = one(tiny_runs.train(make_config(**same_answer, **LEARNING)))
    assert (found.asked, found.ended, found.taught) == (3, 0, 0)
    assert (
        sentence(found) == "0 of 3 answers to held-out questions ended by themselves, the others went on to "
        f"the limit of 16 tokens: {kept.UNTAUGHT}"
    )


def test_an_end_that_is_trained_but_not_learned_is_another_reason() -> None:
    assert kept.sentence(EndingsCounted(4, 8, 1, 8, 128, 1.0)).endswith(kept.UNLEARNED)
    assert kept.sentence(EndingsCounted(4, 8, 7, 8, 128, 1.0)).endswith("the limit of 128 tokens")


def test_whatever_happens_meanwhile_the_run_has_finished(
    make_config: MakeConfig, same_answer: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {**same_answer, "training__max_steps": 1, "training__end_rows": 2}
    control, events = Control(), []
    for event in recipe.train(TrainJob(config_io.to_dict(make_config(**changes))), control):
        events.append(event)
        if isinstance(event, PhaseChanged) and event.text.startswith("Counting"):
            control.request_stop()
    assert isinstance(events[-1], RunFinished)
    assert not tiny_runs.of(events, EndingsCounted)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise EngineError("some.thing", "no kernel for this")

    monkeypatch.setattr(generate, "continued", broken)
    events = tiny_runs.train(make_config(**changes))
    (notice,) = [e for e in tiny_runs.of(events, Noticed) if e.code == "endings.failed"]
    assert "no kernel for this" in notice.message
    assert isinstance(events[-1], RunFinished)
    assert RunFolder(tiny_runs.run_dir(events)).record()["endings"] is None


def test_what_is_not_done_in_a_twentieth_of_the_training_is_not_counted(
    make_config: MakeConfig, same_answer: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "SHORTEST_SECONDS", 0.0)
    monkeypatch.setattr(endings, "SHARE_OF_TRAINING", 0.0)
    events = tiny_runs.train(make_config(**same_answer, training__max_steps=1, training__end_rows=2))
    assert not tiny_runs.of(events, EndingsCounted)
    (notice,) = [e for e in tiny_runs.of(events, Noticed) if e.code == "endings.no_time"]
    assert "at token 1 without an end" in notice.message


def test_only_questions_whose_own_answer_is_whole_and_short_are_asked() -> None:
    def row(trained: str, *, is_cut: bool = False) -> TokenRow:
        return TokenRow(list(range(len(trained))), [c == "x" for c in trained], 1, is_answer_cut=is_cut)

    rows = [row("xxxxxxxx"), row("..xx"), row("..xx", is_cut=True), row("..xxxxx"), row("......xx")]
    found = short_questions(rows, longest_answer=3, longest_prompt=4)
    assert [(len(asked.prompt), len(asked.expected)) for asked in found] == [(2, 2)]
