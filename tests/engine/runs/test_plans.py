"""Runs that have not begun, what a person writes beside runs, and the trash."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from qlora_engine.errors import EngineError
from qlora_engine.jobs import ResumeJob, TrainJob, decode, encode
from qlora_engine.runs import notes, plans, trash
from qlora_engine.runs.record import RunFolder
from tests.support.run_folders import add_checkpoint, config_of, write_run


def test_a_plan_is_edited_started_once_and_then_stays() -> None:
    folder = plans.create(config_of(lora__rank=4))
    assert folder.state() == "planned"
    plans.edit(folder, config_of(lora__rank=8))
    job = plans.start_job(RunFolder.open(folder.run_id), detached=True)
    assert isinstance(job, TrainJob)
    assert (job.config["lora"]["rank"], job.run_dir, job.detached) == (8, str(folder.path), True)
    assert decode(encode(job)) == job

    begun = plans.ready_to_start(job.run_dir, config_of(lora__rank=16))
    assert RunFolder(folder.path).job().lora.rank == 16
    begun.claim(as_planned=True)
    for change in (
        lambda: plans.edit(folder, config_of()),
        lambda: plans.ready_to_start(folder.path, config_of()),
    ):
        with pytest.raises(EngineError, match="has begun"):
            change()
    begun.release()


def test_of_two_who_start_a_plan_one_does() -> None:
    first = plans.create(config_of())
    second = plans.ready_to_start(first.path, config_of())
    first.claim(as_planned=True)
    first.update(state="finished")
    first.release()
    with pytest.raises(EngineError, match="has been started already"):
        second.claim(as_planned=True)
    assert RunFolder(first.path).state() == "finished"


def test_what_left_nothing_to_go_on_from_begins_anew_and_keeps_its_curve_aside() -> None:
    folder = write_run("tried", [2.0, 1.0], state="failed")
    assert plans.is_startable(folder)
    assert not plans.is_editable(folder)
    assert isinstance(plans.start_job(folder), TrainJob)
    plans.ready_to_start(folder.path, folder.job())
    assert list(folder.metrics()) == []
    assert "StepFinished" in (folder.path / plans.EARLIER_FILE).read_text(encoding="utf-8")
    add_checkpoint(folder, 2)
    folder.update(state="failed")
    assert plans.start_job(folder) == ResumeJob(str(folder.path))


def test_a_duplicate_has_the_job_and_the_tags_and_another_folder() -> None:
    source = write_run("first", [1.0], lora__rank=4)
    notes.write(source.path, notes.Notes("Rank four", "about it", ("small", "keep")))
    made = plans.duplicate(source)
    assert made.path != source.path
    assert made.state() == "planned"
    assert made.job().lora.rank == 4
    assert notes.read(made.path) == notes.Notes("Rank four (copy)", "", ("small", "keep"))


def test_notes_are_tidied_kept_and_told_when_damaged() -> None:
    folder = write_run("first", [1.0])
    assert notes.read(folder.path) == notes.Notes()
    notes.rename(folder.path, "  My\n run ")
    notes.tag(folder.path, ["a, b", "a"])
    notes.annotate(folder.path, "two\nlines")
    assert notes.tag(folder.path, remove=["a"]) == notes.Notes("My run", "two\nlines", ("b",))
    assert notes.read(folder.path) == notes.Notes("My run", "two\nlines", ("b",))
    with pytest.raises(EngineError, match="at most 120"):
        notes.rename(folder.path, "x" * 121)
    file = folder.path / notes.NOTES_FILE
    file.write_text(file.read_text(encoding="utf-8").replace("My run", "No run"), encoding="utf-8")
    assert "cannot be read" in notes.read(folder.path).problem


def test_a_run_goes_to_the_trash_with_its_size_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_run("first", [1.0])
    (folder.path / "large.bin").write_bytes(b"x" * 10_000)
    can = types.ModuleType("send2trash")
    can.send2trash = lambda path: Path(path).rename(tmp_path / "trash")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "send2trash", can)
    freed = trash.throw_away(folder)
    assert freed == trash.size_of(tmp_path / "trash") > 10_000
    assert not folder.path.exists()


def test_without_a_trash_it_stays_until_a_person_says_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "no trash here", path)

    folder = write_run("first", [1.0])
    none = types.ModuleType("send2trash")
    none.send2trash = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "send2trash", none)
    with pytest.raises(EngineError, match="no trash here"):
        trash.throw_away(folder)
    assert folder.path.exists()
    folder.claim()
    with pytest.raises(EngineError, match="is being trained"):
        trash.throw_away(RunFolder(folder.path), for_good=True)
    folder.update(state="stopped")
    folder.release()
    trash.throw_away(folder, for_good=True)
    assert not folder.path.exists()
