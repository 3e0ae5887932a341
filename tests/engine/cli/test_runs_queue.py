"""`qlora runs NAME`, `qlora queue`, `qlora attach` and a start beside another run, on run folders written here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from qlora_engine import config_io
from qlora_engine.jobs import TrainJob
from qlora_engine.runs import commands, notes, outlook, plans, queue, queue_runner
from qlora_engine.runs.index import RunIndex
from qlora_engine.runs.record import RunFolder
from tests.support.run_folders import config_of, step_event, write_run


@pytest.fixture(autouse=True)
def cpu_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_runner, "places_here", lambda: ["cpu"])


def planned(name: str) -> RunFolder:
    return plans.create(config_of(output__name=name))


def test_names_notes_and_tags(qlora: Any) -> None:
    folder = write_run("first", [1.0])
    assert qlora("runs", "rename", "first", "The good one").code == 0
    assert qlora("runs", "tag", "The good one", "keep", "small").code == 0  # found by its name
    document = qlora("runs", "tag", "first", "--remove", "small", "--json").document
    assert document == {"run_id": "first", "name": "The good one", "note": "", "tags": ["keep"]}
    assert "a note" in qlora("runs", "note", "first", "a note").out
    assert "The good one [first]" in qlora("runs").out
    notes.rename(write_run("second", [1.0]).path, "The good one")
    result = qlora("runs", "note", "The good one", "x")
    assert (result.code, "say which: " in result.error) == (2, True)
    assert notes.read(folder.path).note == "a note"


def test_search_state_and_order(qlora: Any) -> None:
    write_run("first", [1.0])
    write_run("second", [0.5], state="failed")

    def listed(*how: str) -> list[str]:
        return [run["run_id"] for run in qlora("runs", *how, "--json").document["runs"]]

    assert listed("--sort", "loss") == ["second", "first"]
    assert listed("--state", "failed") == ["second"]
    assert listed("--search", "FIR") == ["first"]
    assert "there is no state 'fail'" in qlora("runs", "--state", "fail").error


def test_duplicate_edit_and_delete(qlora: Any) -> None:
    write_run("first", [1.0], lora__rank=4)
    made = RunFolder(
        Path(qlora("runs", "duplicate", "first", "--name", "again", "--json").document["run_dir"])
    )
    assert (made.job().lora.rank, made.state()) == (4, "planned")
    assert qlora("queue", "add", "again", "--set", "lora.rank=8").code == 0
    assert made.job().lora.rank == 8
    refused = qlora("queue", "add", "first", "--set", "lora.rank=8")
    assert (refused.code, "has begun" in refused.error) == (2, True)
    deleted = qlora("runs", "delete", made.run_id, "first", "--for-good", "--json").document
    assert [one["run_id"] for one in deleted["deleted"]] == [made.run_id, "first"]
    assert all(one["freed_bytes"] > 0 for one in deleted["deleted"])
    assert queue.read().entries == ()
    assert RunIndex().entries() == ()


def test_the_queue_in_words(qlora: Any, tmp_path: Path) -> None:
    assert "Nothing waits" in qlora("queue", "list").out
    file = tmp_path / "job.toml"
    config_io.save(config_of(output__name="from-file"), file)
    assert qlora("queue", "add", str(file), planned("b").run_id).code == 0
    assert qlora("queue", "move", "b", "1").code == 0
    text = qlora("queue", "pause").out
    assert text.index("b ") < text.index("from-file")
    assert "Paused" in text
    document = qlora("queue", "remove", "b", "--json").document
    assert [entry["run_id"] for entry in document["entries"]] == ["from-file"]
    assert (document["is_paused"], document["runners"]) == (True, [])
    assert qlora("queue", "run", "--gpu", "3").code == 2
    assert qlora("queue", "remove", "b").code == 2


def test_the_queue_is_carried_out(qlora: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.queue_stand_in import StandIn

    real = queue_runner.Runner
    monkeypatch.setattr(queue_runner, "Runner", lambda place, hear: real(place, hear, StandIn))  # type: ignore[arg-type]
    for name in ("one", "bad", "two"):
        queue.add(planned(name))
    result = qlora("queue", "run")
    assert result.code == 0
    assert "failed    bad" in result.out
    assert "it is bad" in result.out
    assert [d.run_dir.name for d in queue.read().done] == ["one", "bad", "two"]


def test_attach_shows_a_run_to_its_end_and_asks_it(qlora: Any) -> None:
    folder = write_run("over", [2.0, 1.0])
    result = qlora("attach", "over", "--events")
    assert result.out.count("StepFinished") == 2
    assert result.out.rstrip().splitlines()[-1].startswith('{"event": "RunFinished"')
    assert qlora("attach", "over", "--json").document["state"] == "finished"
    assert "not being trained" in qlora("attach", "over", "--ask", "stop").error
    folder.update(state="running")
    folder.claim()
    inbox = commands.Inbox(folder.path)
    assert qlora("attach", "over", "--ask", "discard").code == 0
    assert inbox.take() == [{"command": "stop", "mode": "discard"}]
    folder.release()
    assert "is gone" in qlora("attach", "over").error


def test_a_start_beside_a_run_is_warned_of(
    qlora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_engine.cli.commands import train

    followed: list[TrainJob] = []

    def follow(job: TrainJob, *_: object) -> train.Outcome:
        followed.append(job)
        return train.Outcome()

    monkeypatch.setattr(train, "follow", follow)
    live = write_run("live", [1.0], state="running")
    live.claim()
    live.append(step_event(3, 9, 1.0))
    waiting = planned("waiting")
    result = qlora("train", "waiting")
    assert "The CPU is training run live" in result.err
    assert "queue add" in result.err
    assert followed[0].run_dir == str(waiting.path)
    live.update(state="stopped")
    live.release()
    assert outlook.busy_with(config_of()) is None
    assert "warning" not in qlora("train", "waiting", "--detach").err
    assert followed[1].detached


def test_the_end_of_the_queue_is_told_and_a_time_to_begin_is_kept(qlora: Any) -> None:
    done = write_run("done", [1.0] * 10, model__name="tiny", training__effective_batch=4)
    done.update(train_seconds=20.0)
    for name in ("a", "b"):
        made = plans.create(config_of(output__name=name, model__name="tiny", training__max_steps=1))
        assert qlora("queue", "add", made.run_id).code == 0
    text = qlora("queue", "list").out
    assert "in 16 s" in text
    assert "Everything is done: in 16 s" in text
    assert qlora("queue", "list", "--json").document["ends_seconds"] == pytest.approx(16.0)
    refused = qlora("queue", "run", "--not-before", "25:00")
    assert (refused.code, "no time of the day" in refused.error) == (2, True)
    assert queue.read().not_before_unix is None


def test_a_time_of_the_day_is_the_next_moment_at_which_the_clock_shows_it(
    qlora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    for text in ("22:00", "9", "09:05"):
        found = outlook.next_time(text, now)
        assert now < found <= now + 90_000
        assert time.strftime("%H:%M", time.localtime(found)) == {"9": "09:00"}.get(text, text)
    monkeypatch.setattr(queue_runner, "ensure_running", list)
    queue.add(planned("a"))
    assert "Begins at" in qlora("queue", "run", "--not-before", "03:30", "--background").out
    assert queue.read().not_before_unix == outlook.next_time("03:30")
    assert "Begins at" not in qlora("queue", "run", "--background").out


def test_what_is_added_may_say_when_the_queue_begins(qlora: Any) -> None:
    made = planned("a")
    refused = qlora("queue", "add", "a", "--not-before", "half past nine")
    assert (refused.code, "no time of the day" in refused.error, queue.read().entries) == (2, True, ())
    told = qlora("queue", "add", "a", "--not-before", "03:30").out
    assert queue.read().not_before_unix == outlook.next_time("03:30")
    assert "Begins at" in told
    assert "queue run --not-before 03:30" in told  # a plain `queue run` begins at once
    planned("b")
    assert qlora("queue", "add", "b").code == 0
    assert queue.read().not_before_unix == outlook.next_time("03:30")
    assert queue.take("cpu") is None
    queue.start_at(time.time() - 60)
    assert "Begins at" not in qlora("queue", "list").out
    taken = queue.take("cpu")
    assert taken is not None
    assert taken.run_dir == made.path


def test_an_experiment_from_its_preview_to_its_comparison(
    qlora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.engine.runs.test_sweep import Learner

    real = queue_runner.Runner
    monkeypatch.setattr(queue_runner, "Runner", lambda place, hear: real(place, hear, Learner))  # type: ignore[arg-type]
    file = tmp_path / "try.toml"
    file.write_text(
        'seeds = 2\n[model]\nname = "llama-3.2-1b"\n[vary]\n"lora.rank" = [4, 8]\n', encoding="utf-8"
    )
    preview = qlora("sweep", file, "--preview")
    assert "GiB" in preview.out
    assert "2 cells, 4 runs, their time is not known until a run of this model has steps" in preview.out
    assert RunIndex().entries() == ()
    cells = qlora("sweep", file, "--preview", "--json").document["cells"]
    assert cells[0]["peak_bytes"] < cells[1]["peak_bytes"]
    queued = qlora("sweep", file, "--queue", "--json").document
    assert len(queued["runs"]) == len(queue.read().entries) == 4
    waiting = qlora("sweep", queued["sweep_id"])
    assert "0 of 4 runs" in waiting.err
    assert qlora("queue", "run").code == 0
    result = qlora("sweep", queued["sweep_id"], "--json").document
    assert [cell["states"] for cell in result["cells"]] == [["finished"] * 2] * 2
    assert "lower" in result["cells"][1]["words"]
    assert "compared with" in qlora("sweep", queued["sweep_id"]).out


def test_held_out_rows_of_several_runs_in_words(qlora: Any) -> None:
    from tests.support.scored_runs import finished, score

    one, two = finished("one"), finished("two")
    score(one, {1: 0.5, 2: 0.25}, {1: "right"})
    result = qlora("compare", "one", "two", "--rows", "5")
    assert "one  loss 0.5000  right" in result.out
    assert "two was not scored yet: qlora predictions two" in result.err
    score(two, {1: 0.75, 2: 0.25}, {1: "wrong"})
    rows = qlora("compare", "one", "two", "--rows", "5", "--json").document["held_out_rows"]
    assert (rows["common"], rows["losses"]) == (2, [0.375, 0.5])
    assert rows["rows"][0]["answers"] == ["right", "wrong"]
    assert "row 1" not in qlora("compare", "one", "two").out
