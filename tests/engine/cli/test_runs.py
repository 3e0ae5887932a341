"""`qlora runs` and `qlora compare` on run folders written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.events import EvaluationFinished, RunStarted, SampleAnswered, StepFinished
from qlora_engine.runs.record import RunFolder


def write_run(name: str, rank: int, losses: list[float]) -> RunFolder:
    config = with_value(with_value(TrainingConfig(), "output.name", name), "lora.rank", rank)
    folder = RunFolder.create(config)
    for step, loss in enumerate(losses, 1):
        folder.append(
            StepFinished(step, len(losses), step / 2, loss, 1e-4, 1.0, 64, 32, 0.5, 128.0, 0.0, None, 1.0)
        )
    folder.append(EvaluationFinished(len(losses), losses[-1] + 0.1, 100, 0.2, True, 1.0))
    folder.update(
        state="finished",
        loss_before=losses[0],
        loss_after=losses[-1],
        last_step=len(losses),
        model={"name": "tiny"},
        plan={"total_steps": len(losses)},
        measured_peak_bytes=3 * 1024**2,
    )
    return folder


def test_no_runs_yet(qlora: Any) -> None:
    result = qlora("runs")
    assert result.code == 0
    assert "No runs" in result.out


def test_a_missing_runs_folder_is_refused(qlora: Any, tmp_path: Path) -> None:
    result = qlora("runs", "--dir", tmp_path / "none")
    assert result.code == 2
    assert "there is no folder" in result.error


def test_a_run_is_named_so_that_it_is_found_again(home: Path, tmp_path: Path) -> None:
    from qlora_engine.cli.commands.train import run_name

    assert run_name(home / "runs" / "one") == "one"
    assert run_name(tmp_path / "elsewhere" / "two") == str(tmp_path / "elsewhere" / "two")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (2.0, 0.5, "75% lower"),
        (2.0, 3.0, "50% higher"),
        (2.0, 2.0001, "the same"),
        (2.0, None, ""),
        (0.0, 1.0, "1.0000 after"),
    ],
)
def test_the_change_of_the_loss_in_words(before: float, after: float | None, words: str) -> None:
    from qlora_engine.cli.commands.train import loss_line

    assert words in loss_line(before, after)


def test_runs_are_listed(qlora: Any) -> None:
    write_run("first", 4, [2.0, 1.0])
    result = qlora("runs")
    assert result.code == 0
    assert "finished" in result.out
    assert "3.00 MiB" in result.out
    (listed,) = qlora("runs", "--json").document["runs"]
    assert (listed["run_id"], listed["loss_after"]) == ("first", 1.0)


def test_a_failed_run_says_what_it_was_and_why(qlora: Any) -> None:
    config = with_value(with_value(TrainingConfig(), "output.name", "bad"), "model.name", "/no/model")
    RunFolder.create(config).update(state="failed", error={"message": "there is no folder /no/model"})
    text = qlora("runs").out
    assert "/no/model" in text.splitlines()[1]
    assert "bad failed: there is no folder /no/model" in text


def test_a_run_whose_process_is_gone_is_not_running(qlora: Any) -> None:
    write_run("dead", 4, [2.0]).update(state="running", pid=2**22 - 3, pid_started=0.0)
    assert qlora("runs", "--json").document["runs"][0]["state"] == "crashed"


def test_a_broken_record_is_shown_and_explained(qlora: Any) -> None:
    folder = write_run("broken", 4, [2.0])
    (folder.path / "run.json").write_text("{", encoding="utf-8")
    result = qlora("runs")
    assert result.code == 0
    assert "unreadable" in result.out
    assert "cannot be read" in result.err


def test_compare_shows_settings_and_curves(qlora: Any) -> None:
    write_run("a", 4, [2.0, 1.5, 1.0])
    write_run("b", 8, [2.0, 1.4])
    text = qlora("compare", "a", "b").out
    assert "lora.rank" in text
    assert "1.4" in text
    document = qlora("compare", "a", "b", "--json").document
    assert document["settings"] == {"lora.rank": [4, 8]}
    assert [point["loss"] for point in document["runs"][1]["curve"]] == [2.0, 1.4]
    assert document["runs"][0]["held_out"] == [{"step": 3, "loss": 1.1}]


def test_compare_of_equal_settings_says_so(qlora: Any) -> None:
    write_run("a", 4, [2.0])
    write_run("b", 4, [2.1])
    assert "settings are the same" in qlora("compare", "a", "b").out


@pytest.mark.parametrize("arguments", [("compare", "a", "b"), ("resume", "a"), ("export", "a")])
def test_an_unknown_run_is_named(arguments: tuple[str, ...], qlora: Any, tmp_path: Path) -> None:
    extra = ("--as", "merged", "--out", str(tmp_path / "out")) if arguments[0] == "export" else ()
    result = qlora(*arguments, *extra)
    assert result.code == 2
    assert result.error == "error: there is no run 'a'; hint: see the runs with `qlora runs`"


def test_one_run_is_shown_by_name(qlora: Any) -> None:
    write_run("first", 4, [2.0, 1.0])
    write_run("second", 4, [2.0, 1.0])
    (shown,) = qlora("runs", "second", "--json").document["runs"]
    assert shown["run_id"] == "second"
    assert qlora("runs", "third").code == 2


def test_answers_to_fixed_prompts_are_told_in_order_and_once(qlora: Any) -> None:
    folder = write_run("first", 4, [2.0, 1.0])
    assert "no fixed prompts" in qlora("runs", "first", "--answers").out
    started = RunStarted("first", str(folder.path), 1, True, 1.0, from_step=25)
    for event in (
        SampleAnswered(0, "Say hi", "what?", 2, 0.1),
        EvaluationFinished(0, 3.25, 100, 0.2, True, 1.0),
        SampleAnswered(25, "Say hi", "hm", 1, 0.1),  # stopped before the loss was known: asked again
        SampleAnswered(50, "Say hi", "lost with a crash", 1, 0.1),
        started,
        SampleAnswered(25, "Say hi", "hello", 1, 0.1),
        SampleAnswered(25, "Say\nbye", "bye", 1, 0.1),
    ):
        folder.append(event)
    with folder.metrics_path.open("a") as file:
        file.write('{"event": "SampleAnswered", "step": 75, "pro')  # killed in mid-write
    folder.append(SampleAnswered(75, "Say hi", "hello there", 2, 0.1))  # the next writer closes that line
    first, second = qlora("runs", "first", "--answers", "--json").document["prompts"]
    assert [(p["step"], p["answer"], p["held_out_loss"]) for p in first["points"]] == [
        (0, "what?", 3.25), (25, "hello", None), (75, "hello there", None),
    ]  # fmt: skip
    assert (second["prompt"], second["points"][0]["answer"]) == ("Say\nbye", "bye")
    told = qlora("runs", "first", "--answers").out
    assert told.index("what?") < told.index("hello")
    assert "lost with a crash" not in told
    assert qlora("runs", "--answers").code == 2
