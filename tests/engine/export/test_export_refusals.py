"""Exports that cannot be: refused in one sentence, with nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_engine.client import InlineEngine
from qlora_engine.errors import EngineError
from qlora_engine.events import (
    PhaseChanged,
    Progressed,
    RunFailed,
    RunStopped,
)
from qlora_engine.export import merge, source
from qlora_engine.jobs import ExportJob
from qlora_engine.runs.record import RunFolder
from tests.engine.export.conftest import Export, RunOf, export_events
from tests.support.tiny import make_tiny


def refused(run: Path, out: Path, format_: str = "merged", **options: Any) -> RunFailed:
    before = sorted(p.name for p in out.parent.iterdir()) if out.parent.is_dir() else []
    events = export_events(run, format_, out, **{"verify": False, **options})
    end = events[-1]
    assert isinstance(end, RunFailed), end
    assert not end.log_tail, end.log_tail
    if out.parent.is_dir():
        assert sorted(p.name for p in out.parent.iterdir()) == before
    return end


def test_another_base_is_refused_with_both_hashes(run_of: RunOf, model_dir: Path, tmp_path: Path) -> None:
    other = make_tiny(
        "llama",
        tmp_path / "models" / "tiny",
        seed=1,
        tie_word_embeddings=True,
        intermediate_size=128,
        max_shard_size="100KB",
    )
    run = tmp_path / "run"
    shutil.copytree(run_of("lora"), run)
    record = RunFolder(run).record()
    trained_on = record["model"]["fingerprint"]
    record["model"]["path"] = str(other)
    RunFolder(run).write_record(record)
    for format_ in ("adapter", "merged"):
        end = refused(run, tmp_path / "out", format_)
        assert end.code == "export.wrong_base"
        name = next(n for n in trained_on if n in end.message)
        assert trained_on[name][:16] in end.message
        from qlora_engine.models.fingerprint import fingerprint

        assert fingerprint(other)[name][:16] in end.message


def test_a_base_that_is_gone_is_said(run_of: RunOf, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_of("lora"), run)
    record = RunFolder(run).record()
    record["model"] |= {"path": str(tmp_path / "gone"), "name": "nobody/nothing"}
    RunFolder(run).write_record(record)
    end = refused(run, tmp_path / "out")
    assert "nobody/nothing" in end.message
    assert "not on this disk" in end.message


def test_a_folder_that_holds_something_is_refused_and_left_alone(run_of: RunOf, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    end = refused(run_of("lora"), out)
    assert end.code == "export.exists"
    assert end.is_input_error
    assert (out / "precious.txt").read_text() == "mine"
    file = tmp_path / "file"
    file.write_text("mine")
    assert refused(run_of("lora"), file).code == "export.exists"


def test_an_empty_folder_is_used(run_of: RunOf, export: Export, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert (export(run_of("lora"), "adapter") / "adapter_model.safetensors").is_file()


def test_a_place_that_cannot_be_written_is_said(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    end = refused(run_of("lora"), in_the_way / "out")
    assert end.code == "output.not_writable"

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "touch", denied)
    end = refused(run_of("lora"), tmp_path / "out")
    assert end.code == "output.not_writable"
    assert "Permission denied" in end.message


@pytest.mark.parametrize("format_", ["merged", "adapter"])
def test_too_small_a_disk_is_refused_before_writing(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    monkeypatch.setattr(source.shutil, "disk_usage", lambda _: SimpleNamespace(total=9, used=8, free=1000))
    end = refused(run_of("lora"), tmp_path / "out", format_)
    assert end.code == "disk.full"
    assert "GiB left" in end.message


def test_a_disk_that_fills_up_leaves_nothing_behind(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = merge.write_pieces, iter(range(100))

    def second_fails(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

    monkeypatch.setattr(merge, "write_pieces", second_fails)
    end = refused(run_of("lora"), tmp_path / "out")
    assert end.code == "disk.write"
    assert "No space left on device" in end.message
    assert next(calls) == 2  # one shard was written, and is gone: it is too small to be kept


@pytest.mark.parametrize("moment", ["exporting", "verifying"])
def test_a_stop_half_way_leaves_nothing_behind(run_of: RunOf, tmp_path: Path, moment: str) -> None:
    engine, seen = InlineEngine(), []
    out = tmp_path / "place" / "out"
    for event in engine.run(ExportJob(str(run_of("lora")), "merged", str(out), {})):
        seen.append(event)
        is_half_way = isinstance(event, Progressed) and event.phase == "exporting" and event.done == 5
        if (moment == "exporting" and is_half_way) or (
            isinstance(event, PhaseChanged) and event.phase == moment == "verifying"
        ):
            engine.request_stop()
    assert isinstance(seen[-1], RunStopped)
    assert not seen[-1].is_resumable
    assert list(out.parent.iterdir()) == []


def test_an_unknown_format_or_option_is_an_input_error(run_of: RunOf, tmp_path: Path) -> None:
    end = refused(run_of("lora"), tmp_path / "out", "mergd")
    assert end.code == "export.format"
    assert "merged" in end.hint
    end = refused(run_of("lora"), tmp_path / "out", dtype="int3")
    assert end.code == "export.option"
    assert end.is_input_error


def test_a_run_without_an_adapter_is_refused_with_the_next_step(run_of: RunOf, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_of("lora"), run, ignore=shutil.ignore_patterns("adapter"))
    end = refused(run, tmp_path / "out")
    assert end.code == "export.no_adapter"
    assert "qlora resume" in end.hint


def test_an_adapter_of_another_kind_is_not_merged_wrongly(tmp_path: Path) -> None:
    for config in ({"peft_type": "IA3"}, {"peft_type": "LORA", "bias": "all"}):
        with pytest.raises(EngineError, match="not merged here"):
            merge.read_deltas(tmp_path, config)
