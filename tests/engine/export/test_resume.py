"""An export that broke off goes on from what is certain on the disk, and only if it is the same export."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qlora_engine.client import InlineEngine
from qlora_engine.control import Control
from qlora_engine.errors import EngineError
from qlora_engine.events import Event, Noticed, Progressed, RunFailed, RunFinished, RunStopped
from qlora_engine.export import journal, pieces, stream
from qlora_engine.export.journal import Journal, aside_of, drop, kept_at
from qlora_engine.jobs import ExportJob
from tests.engine.export.conftest import Export, RunOf, failed, proven
from tests.engine.export.test_promises import digests, full_disk
from tests.support.run_folders import seal_adapter
from tests.support.tiny import make_tiny

FORMATS = ("merged", "bnb4", "gguf")


@pytest.fixture
def keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny exports are worth keeping too, and are marked at every piece."""
    monkeypatch.setattr(journal, "WORTH_KEEPING_BYTES", 1)
    monkeypatch.setattr(stream, "MARK_BYTES", 1)


def job(run: Path, format_: str, out: Path, **options: Any) -> ExportJob:
    return ExportJob(str(run), format_, str(out), {"verify": False, **options})


def stopped(run: Path, format_: str, out: Path, at: int = 9) -> list[Event]:
    """An export that was cancelled after some tensors."""
    engine, seen = InlineEngine(), []
    for event in engine.run(job(run, format_, out)):
        seen.append(event)
        if isinstance(event, Progressed) and event.phase == "exporting" and event.done >= at:
            engine.request_stop()
    return seen


def finished(run: Path, format_: str, out: Path, **options: Any) -> list[Event]:
    events = list(InlineEngine().run(job(run, format_, out, **options)))
    assert isinstance(events[-1], RunFinished), events[-1]
    return events


def marked_bytes(out: Path) -> int:
    """What the journal is certain of; a thread of its own hashes and marks, some tensors behind."""
    return sum(mark.nbytes for mark in journal._marks(journal._read(aside_of(out)) or {}).values())


def resumed(events: list[Event]) -> bool:
    return any(isinstance(e, Noticed) and e.code == "export.resumed" for e in events)


@pytest.mark.usefixtures("keep_all")
@pytest.mark.parametrize("format_", FORMATS)
def test_a_cancelled_export_goes_on_and_is_the_same_bytes(
    run_of: RunOf, export: Export, tmp_path: Path, format_: str
) -> None:
    run = run_of("lora")
    whole = digests(export(run, format_, "whole"))
    out = tmp_path / "place" / "out"
    end = stopped(run, format_, out)[-1]
    assert isinstance(end, RunStopped)
    assert end.is_resumable
    kept: Any = end.result
    assert kept["kept"] == str(aside_of(out))
    assert kept["kept"] in end.reason
    assert not out.exists()
    assert not (aside_of(out) / "proof.json").exists()
    found = kept_at(out)
    assert found is not None
    assert found.nbytes == kept["kept_bytes"] > 0
    written: list[int] = []
    original = stream._write_all

    def counting(target: Any, data: memoryview) -> None:
        written.append(data.nbytes)
        original(target, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_write_all", counting)
        events = finished(run, format_, out)
    assert resumed(events)
    total = sum(p.stat().st_size for p in out.iterdir() if p.suffix in (".safetensors", ".gguf"))
    assert sum(written) == total - found.nbytes  # what was certain was not written again
    assert digests(out) == whole
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.usefixtures("keep_all")
@pytest.mark.parametrize("format_", FORMATS)
def test_a_killed_export_goes_on(run_of: RunOf, tmp_path: Path, format_: str) -> None:
    run = run_of("lora")
    out = tmp_path / "place" / "out"
    child = os.fork()
    if child == 0:
        try:
            for event in InlineEngine().run(job(run, format_, out)):
                if isinstance(event, Progressed) and event.phase == "exporting" and marked_bytes(out):
                    os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)  # never on into the other tests
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not out.exists()
    assert kept_at(out) is not None
    events = finished(run, format_, out)
    assert resumed(events)
    assert failed(proven(run, out, format_)) == []


def changed_option(run: Path, out: Path, model: Path) -> dict[str, Any]:
    return {"dtype": "fp16"}


def changed_adapter(run: Path, out: Path, model: Path) -> dict[str, Any]:
    from safetensors.torch import load_file, save_file

    file = run / "adapter" / "adapter_model.safetensors"
    tensors = {name: tensor * 2 for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    seal_adapter(run)
    return {}


def spoiled_bytes(run: Path, out: Path, model: Path) -> dict[str, Any]:
    for file in aside_of(out).glob("*.safetensors"):
        if data := bytearray(file.read_bytes()):
            data[len(data) // 4] ^= 1
            file.write_bytes(data)
    return {}


def shortened(run: Path, out: Path, model: Path) -> dict[str, Any]:
    for file in aside_of(out).glob("*.safetensors"):
        os.truncate(file, 100)
    return {}


def damaged_journal(run: Path, out: Path, model: Path) -> dict[str, Any]:
    (aside_of(out) / journal.FILE).write_text('{"key": ')
    return {}


@pytest.mark.usefixtures("keep_all")
@pytest.mark.parametrize(
    "change", [changed_option, changed_adapter, spoiled_bytes, shortened, damaged_journal]
)
def test_what_is_not_the_same_or_not_whole_is_made_again(
    run_of: RunOf, model_dir: Path, export: Export, tmp_path: Path, change: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_of("lora"), run)
    out = tmp_path / "place" / "out"
    stopped(run, "merged", out, at=3)
    options = change(run, out, model_dir)
    events = finished(run, "merged", out, **options)
    assert not resumed(events)
    assert digests(out) == digests(export(run, "merged", "whole", **options))


@pytest.mark.usefixtures("keep_all")
def test_a_full_disk_keeps_what_is_whole_and_says_where(run_of: RunOf, tmp_path: Path) -> None:
    run, out = run_of("lora"), tmp_path / "place" / "out"
    original, calls = stream._write_all, iter(range(1000))

    def fills(target: Any, data: memoryview) -> None:
        if next(calls) > 8:
            full_disk()
        original(target, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_write_all", fills)
        end = list(InlineEngine().run(job(run, "merged", out)))[-1]
    assert isinstance(end, RunFailed)
    assert "No space left" in end.message
    assert str(aside_of(out)) in end.hint
    assert resumed(finished(run, "merged", out))


@pytest.mark.usefixtures("keep_all")
def test_what_is_kept_can_be_dropped(run_of: RunOf, tmp_path: Path) -> None:
    out = tmp_path / "place" / "out"
    stopped(run_of("lora"), "merged", out)
    assert kept_at(out) is not None
    drop(out)
    assert kept_at(out) is None
    assert list(out.parent.iterdir()) == []
    assert not resumed(finished(run_of("lora"), "merged", out))


def test_two_exports_to_one_place_do_not_mix(run_of: RunOf, tmp_path: Path) -> None:
    """The first one's process lives: the second is refused, and touches nothing."""
    out = tmp_path / "out"
    aside = aside_of(out)
    aside.mkdir()
    import psutil

    parent = psutil.Process(os.getppid())
    owner = [parent.pid, parent.create_time()]
    (aside / journal.FILE).write_text(json.dumps({"key": {}, "owner": owner, "files": {}}))
    end = list(InlineEngine().run(job(run_of("lora"), "merged", out)))[-1]
    assert isinstance(end, RunFailed)
    assert end.code == "export.busy"
    assert (aside / journal.FILE).is_file()
    assert kept_at(out) is None  # it is not broken off
    drop(out)
    assert aside.is_dir()


def test_a_stopped_export_too_small_to_keep_leaves_nothing(run_of: RunOf, tmp_path: Path) -> None:
    out = tmp_path / "place" / "out"
    end = stopped(run_of("lora"), "merged", out)[-1]
    assert isinstance(end, RunStopped)
    assert not end.is_resumable
    assert list(out.parent.iterdir()) == []


def test_the_journal_refuses_names_outside_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    aside_of(out).mkdir()
    mark = {"nbytes": 4, "sha256": hashlib.sha256(b"mine").hexdigest()}
    (aside_of(out) / journal.FILE).write_text(
        json.dumps({"key": {}, "owner": None, "files": {"../precious": mark}})
    )
    assert Journal(out, {}).marks == {}
    assert precious.read_bytes() == b"mine"


# ---- the stream


def test_few_pieces_are_made_ahead_whatever_the_files_size() -> None:
    """Memory does not grow with the model."""
    made: list[int] = []
    lock = threading.Lock()
    most = 0

    def make(number: int) -> memoryview:
        with lock:
            made.append(number)
        return memoryview(bytes(4))

    todo = (pieces.Piece(4, lambda n=n: make(n)) for n in range(100))  # type: ignore[misc]
    for taken, _ in enumerate(pieces.in_order(todo, Control())):
        with lock:
            most = max(most, len(made) - taken)
    assert sorted(made) == list(range(100))
    assert most <= pieces.AHEAD


def test_spans_cover_every_row_once_and_are_whole_multiples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_ELEMENTS", 1000)
    for shape, multiple in (((1001, 30), 4), ((7,), 1), ((64, 2000), 2), ((5, 10), 8)):
        spans = pieces.row_spans(shape, multiple)
        assert [n for start, stop in spans for n in range(start, stop)] == list(range(shape[0]))
        assert all((stop - start) % multiple == 0 for start, stop in spans[:-1])


@pytest.mark.parametrize("into", ["original", "dequantized"])
def test_small_pieces_make_the_same_weights(
    run_of: RunOf, export: Export, monkeypatch: pytest.MonkeyPatch, into: str
) -> None:
    """But for the last bit: sums of fewer rows may be taken in another order."""
    run = run_of("lora")
    whole = export(run, "merged", "whole", into=into, dtype="fp32")
    monkeypatch.setattr(pieces, "PIECE_ELEMENTS", 500)
    other = export(run, "merged", "pieces", into=into, dtype="fp32")
    for file in sorted(whole.glob("*.safetensors")):
        found = load_file(other / file.name)
        for name, wanted in load_file(file).items():
            torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-6)


def test_a_base_that_became_shorter_is_said(run_of: RunOf, tmp_path: Path) -> None:
    base = make_tiny("llama", tmp_path / "base")
    run = run_of("shortened-base", base)
    file = base / "model.safetensors"
    before = file.read_bytes()
    seen: list[Event] = []
    for event in InlineEngine().run(job(run, "merged", tmp_path / "out")):
        seen.append(event)
        if not isinstance(event, Progressed):  # the header was read, and then it was cut
            os.truncate(file, len(before) // 2)
    end = seen[-1]
    assert isinstance(end, RunFailed)
    assert "model.safetensors" in end.message
    assert end.code == "export.source_lost"


def test_torchs_own_threads_are_as_before() -> None:
    before = torch.get_num_threads()
    list(pieces.in_order([pieces.of_bytes(b"x")], Control()))
    assert torch.get_num_threads() == before


def test_an_error_of_a_piece_is_the_errors_own(tmp_path: Path) -> None:
    def fails() -> memoryview:
        raise EngineError("export.range", "too large", "choose another")

    with pytest.raises(EngineError, match="too large"):
        list(pieces.in_order([pieces.of_bytes(b"x"), pieces.Piece(1, fails)], Control()))
