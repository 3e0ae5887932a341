"""The list of all runs, from the cache and without it, and which of them are shown."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from pathlib import Path

import pytest

from qlora_engine.errors import EngineError
from qlora_engine.runs import index, notes, plans, queue
from qlora_engine.runs.index import RunEntry, RunIndex, as_json
from qlora_engine.runs.selecting import all_tags, select
from qlora_engine.runs.summary import list_runs
from tests.support.run_folders import config_of, step_event, write_run


def by_id() -> dict[str, RunEntry]:
    return {entry.run_id: entry for entry in RunIndex().entries()}


def test_the_cache_tells_what_the_folders_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        write_run(f"run{number}", [2.0, 1.5 - number / 10])
    plans.create(config_of(output__name="draft"))
    fresh = RunIndex().entries()
    reads: list[Path] = []
    real = index.summary_of
    monkeypatch.setattr(index, "summary_of", lambda folder: reads.append(folder.path) or real(folder))
    assert RunIndex().entries() == fresh
    assert reads == []
    assert tuple(e.summary for e in fresh) == tuple(list_runs())
    assert {e.run_id: e.state for e in fresh}["draft"] == "planned"
    assert by_id()["run2"].best_loss == pytest.approx(1.3)


def test_what_changes_is_read_again_and_what_goes_is_gone(home: Path) -> None:
    one, two = write_run("one", [1.0]), write_run("two", [1.0])
    RunIndex().entries()
    one.update(loss_after=0.25, best_loss=0.25)
    notes.rename(two.path, "Second")
    found = by_id()
    assert found["one"].best_loss == 0.25
    assert found["two"].title == "Second"
    shutil.rmtree(one.path)
    assert list(by_id()) == ["two"]
    with sqlite3.connect(home / "cache" / "runs.sqlite") as db:
        assert [row[0] for row in db.execute("SELECT path FROM runs")] == [str(two.path)]


@pytest.mark.parametrize("damage", ["gone", "text", "cut", "other version", "folder"])
def test_a_lost_or_damaged_cache_is_made_again(home: Path, damage: str) -> None:
    write_run("one", [1.0])
    RunIndex().entries()
    file = home / "cache" / "runs.sqlite"
    if damage == "gone":
        file.unlink()
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "text":
        file.write_text("not a database, and long enough to be looked at " * 30, encoding="utf-8")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        with sqlite3.connect(file) as db:
            db.execute("PRAGMA user_version = 1")
    assert list(by_id()) == ["one"]
    assert list(by_id()) == ["one"]


def test_a_live_run_is_told_by_its_newest_line_and_never_from_the_cache() -> None:
    folder = write_run("live", [2.0, 1.0], state="running")
    folder.claim()
    folder.append(step_event(7, 10, 0.5))
    entry = by_id()["live"]
    assert (entry.state, entry.summary.last_step, entry.is_live) == ("running", 7, True)
    folder.release()
    assert by_id()["live"].state == "crashed"


def test_a_copied_folder_is_one_of_the_runs(home: Path, tmp_path: Path) -> None:
    source = write_run("one", [1.0])
    shutil.copytree(source.path, home / "runs" / "copy of one")
    shutil.copytree(source.path, tmp_path / "usb" / "elsewhere")
    found = RunIndex().entries([tmp_path / "usb"])
    assert sorted(e.run_id for e in found) == ["copy of one", "elsewhere", "one"]
    assert len(RunIndex().entries()) == 2


def test_a_queued_run_says_its_place() -> None:
    folder = plans.create(config_of(output__name="draft"))
    queue.add(folder)
    entry = by_id()["draft"]
    assert (entry.state, entry.queue_place, as_json(entry)["state"]) == ("queued", 1, "queued")


def test_searching_filtering_and_sorting() -> None:
    for name, loss, tags in (("alpha", 0.5, ["good"]), ("beta", 0.3, ["good", "big"]), ("gamma", 0.9, [])):
        notes.tag(write_run(name, [loss]).path, tags)
    plans.create(config_of(output__name="draft"))
    entries = RunIndex().entries()

    def names(**how: object) -> list[str]:
        return [e.run_id for e in select(entries, **how)]  # type: ignore[arg-type]

    assert names(text="BET tiny") == ["beta"]
    assert names(tags=["Good"], sort="name") == ["alpha", "beta"]
    assert names(sort="loss") == ["beta", "alpha", "gamma", "draft"]  # unknown comes last
    assert names(sort="loss", reverse=True) == ["gamma", "alpha", "beta", "draft"]
    assert names(states=["planned"]) == ["draft"]
    assert all_tags(entries) == ("good", "big")
    with pytest.raises(EngineError, match="no order 'los'") as caught:
        names(sort="los")
    assert "did you mean 'loss'" in caught.value.hint


def test_every_field_of_an_entry_comes_back_from_the_cache() -> None:
    folder = write_run("one", [1.0], state="failed")
    folder.update(error={"code": "x", "message": "it broke", "hint": "mend it"}, last_checkpoint="step-1")
    fresh, cached = RunIndex().entries()[0], RunIndex().entries()[0]
    assert dataclasses.asdict(fresh) == dataclasses.asdict(cached)
    assert fresh.summary.error == "it broke; mend it"
    assert fresh.summary.notices
