"""The run folder, as its readers meet it: half-written, dead, newer, incomplete."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.config import TrainingConfig, with_value
from qlora_engine.errors import EngineError
from qlora_engine.events import Noticed, RunStarted, StepFinished
from qlora_engine.runs import ownership, sealed
from qlora_engine.runs.record import RunFolder, is_run
from qlora_engine.runs.summary import list_runs, summary_of
from tests.support.run_folders import add_checkpoint


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    return with_value(TrainingConfig(), "output.runs_dir", str(tmp_path / "runs"))


@pytest.fixture
def folder(config: TrainingConfig) -> RunFolder:
    return RunFolder.create(config)


def step(number: int, loss: float = 1.0) -> StepFinished:
    return StepFinished(number, 10, 0.1, loss, 1e-4, 1.0, 10, 5, 0.1, 100.0, None, None, 0.0)


def started(from_step: int) -> RunStarted:
    return RunStarted("a", "/a", 1, True, 0.0, from_step)


def test_the_job_file_comes_back(folder: RunFolder, config: TrainingConfig) -> None:
    assert folder.job() == config


def test_two_runs_of_one_name_do_not_share_a_folder(config: TrainingConfig) -> None:
    named = with_value(config, "output.name", "mine")
    RunFolder.create(named)
    with pytest.raises(EngineError, match="exists already"):
        RunFolder.create(named)


def test_unnamed_runs_never_collide(config: TrainingConfig) -> None:
    assert len({RunFolder.create(config).path for _ in range(5)}) == 5


def test_a_runs_folder_that_cannot_be_made_is_a_user_error(config: TrainingConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(EngineError, match="cannot be written") as caught:
        RunFolder.create(with_value(config, "output.runs_dir", str(tmp_path / "file")))
    assert caught.value.exit_code == 2


def test_a_run_of_a_live_process_is_running(folder: RunFolder) -> None:
    folder.claim()
    assert folder.state() == "running"


def test_a_run_whose_process_is_gone_is_crashed(folder: RunFolder) -> None:
    folder.update(state="running", pid=2**22 - 3, pid_started=1.0)
    assert folder.state() == "crashed"


def test_a_reused_pid_does_not_keep_a_run_alive(folder: RunFolder) -> None:
    folder.update(
        state="running", pid=os.getpid(), pid_started=ownership.identity(os.getpid())["pid_started"] - 1000
    )
    assert folder.state() == "crashed"


def test_a_run_of_another_live_process_is_not_taken(folder: RunFolder) -> None:
    folder.update(state="running", **ownership.identity(os.getppid()))
    with pytest.raises(EngineError, match="is being trained"):
        folder.claim()


def test_a_half_written_last_line_is_left_out(folder: RunFolder) -> None:
    folder.append(step(1))
    with folder.metrics_path.open("a", encoding="utf-8") as file:
        file.write('{"event": "StepFin')
    assert list(folder.metrics()) == [step(1)]


def test_steps_that_a_crash_threw_away_are_left_out(folder: RunFolder) -> None:
    for event in (
        step(1),
        step(2),
        step(3, loss=9.0),
        started(2),
        step(3, loss=0.5),
        Noticed("info", "a", "b"),
    ):
        folder.append(event)
    assert list(folder.metrics()) == [
        step(1),
        step(2),
        started(2),
        step(3, loss=0.5),
        Noticed("info", "a", "b"),
    ]


def test_only_complete_checkpoints_count(folder: RunFolder) -> None:
    whole = add_checkpoint(folder, 10)
    (add_checkpoint(folder, 20) / "adapter.safetensors").write_bytes(b"123")
    (folder.checkpoints_dir / "step-30").mkdir()
    (folder.checkpoints_dir / ".step-40.1.tmp").mkdir()
    assert folder.checkpoints() == [whole]


def test_checkpoints_are_ordered_by_step_not_by_name(folder: RunFolder) -> None:
    paths = [add_checkpoint(folder, number) for number in (9, 100, 20)]
    assert folder.checkpoints() == [paths[0], paths[2], paths[1]]


def test_a_missing_checkpoint_is_said(folder: RunFolder) -> None:
    folder.update(state="stopped", last_checkpoint="step-5")
    summary = summary_of(folder)
    assert not summary.is_resumable
    assert summary.notices == ("its checkpoints are missing",)


@pytest.mark.parametrize("content", ["{", "", '{"schema_version": 99}', "[]"])
def test_an_unreadable_record_never_breaks_the_history(folder: RunFolder, content: str) -> None:
    (folder.path / "run.json").write_text(content, encoding="utf-8")
    (summary,) = list_runs(folder.path.parent)
    assert summary.state == "unreadable"
    assert summary.notices


@pytest.mark.parametrize(
    "name", ["step-\u00b2", "step-01", "step--1", "step-1e3", "step-" + "9" * 30, "step-x"]
)
def test_a_folder_that_is_only_named_like_a_checkpoint_is_none(folder: RunFolder, name: str) -> None:
    whole = add_checkpoint(folder, 1)
    add_checkpoint(folder, 2).rename(folder.checkpoints_dir / name)
    assert folder.checkpoints() == [whole]
    assert summary_of(folder).notices == ()


def test_a_position_that_is_another_number_now_is_seen(folder: RunFolder) -> None:
    """Still JSON, still the step of its folder: only the checksum tells."""
    path = add_checkpoint(folder, 3) / "state.json"
    path.write_bytes(sealed.sealed({"train_state": {"step": 3, "tokens_seen": 500}}))
    assert len(folder.checkpoints()) == 1
    path.write_bytes(path.read_bytes().replace(b"500", b"900"))
    assert folder.checkpoints() == []


def test_a_lost_record_is_made_again_from_the_newest_checkpoint(folder: RunFolder) -> None:
    for number in (1, 2):
        path = add_checkpoint(folder, number)
        (path / "run.json").write_bytes(sealed.sealed({"run_id": folder.run_id, "last_step": number}))
    (folder.path / "run.json").unlink()
    record = folder.record()
    assert (record["last_step"], record["state"], record["rebuilt_from"]) == (2, "crashed", "step-2")
    assert "from step-2" in summary_of(folder).notices[0]


@pytest.mark.parametrize("left", [0, 1, 40, 400], ids=["nothing", "a letter", "a line", "some tables"])
def test_a_cut_job_file_is_not_taken_for_the_job(
    folder: RunFolder, config: TrainingConfig, left: int
) -> None:
    """Else every setting that was cut off would be the default, and the run another one."""
    text = folder.job_path.read_text(encoding="utf-8")
    folder.job_path.write_text(text[:left].rpartition("\n")[0], encoding="utf-8")
    asked, problem = folder.asked()
    assert (asked, bool(problem)) == (config, True)


def test_a_line_of_numbers_that_was_changed_is_left_out(folder: RunFolder) -> None:
    for number in (1, 2, 3):
        folder.append(step(number, loss=1.25))
    text = folder.metrics_path.read_text(encoding="utf-8")
    folder.metrics_path.write_text(text.replace("1.25", "9.25", 1), encoding="utf-8")
    assert [(e.step, e.loss) for e in folder.metrics() if isinstance(e, StepFinished)] == [
        (2, 1.25),
        (3, 1.25),
    ]


def test_runs_are_listed_newest_first(config: TrainingConfig) -> None:
    first, second = RunFolder.create(config), RunFolder.create(config)
    first.update(created=1.0)
    second.update(created=2.0)
    assert [s.run_id for s in list_runs(first.path.parent)] == [second.run_id, first.run_id]


def test_opening_what_is_no_run_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="qlora runs"):
        RunFolder.open(tmp_path / "nothing")


def test_a_run_whose_making_is_broken_off_anywhere_is_no_run_or_one_that_can_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a kill between any two of its first files, each of which is put in its place by a rename."""
    moved, renamed, made = 0, os.replace, 0

    def broken_off(*arguments: Any, **named: Any) -> None:
        nonlocal moved
        moved += 1
        if moved > made:
            raise KeyboardInterrupt
        renamed(*arguments, **named)

    monkeypatch.setattr(os, "replace", broken_off)
    states = []
    while not states or states[-1] != "whole":
        config = with_value(TrainingConfig(), "output.runs_dir", str(tmp_path / str(made)))
        config, moved = with_value(config, "output.name", "run"), 0
        try:
            RunFolder.create(config)
            states.append("whole")
        except KeyboardInterrupt:
            (found,) = (tmp_path / str(made)).iterdir()
            states.append(RunFolder(found).state() if is_run(found) else "no run")
            assert [run.state for run in list_runs(tmp_path / str(made))] == [
                state for state in states[-1:] if state != "no run"
            ]
        made += 1
    assert states == ["no run", "crashed", "whole"]
